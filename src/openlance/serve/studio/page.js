element.addEventListener('click', (event) => {
  const button = event.target.closest('button[data-do], button[data-copy]');
  if (!button) return;
  if (button.dataset.copy) {
    navigator.clipboard.writeText(button.parentElement.querySelector('.' + button.dataset.copy).textContent)
      .then(() => { button.textContent = 'Copied'; });
  } else {
    trigger('click', {do: button.dataset.do, at: button.dataset.at || ''});
  }
});
element.addEventListener('change', async (event) => {
  if (event.target.type !== 'file' || !event.target.files.length) return;
  const form = new FormData();
  for (const file of event.target.files) form.append('file', file);
  const answer = await fetch('files', {method: 'POST', body: form});
  trigger('click', {do: 'brought', ...(await answer.json())});
});
const down = () => { const log = element.querySelector('.talk'); if (log) log.scrollTop = log.scrollHeight; };
element.addEventListener('load', down, true);
element.addEventListener('loadeddata', down, true);
watch('value', down);
