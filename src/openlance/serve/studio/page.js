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
  const input = event.target, names = [];
  let wrong = '';
  for (const file of input.type === 'file' ? [...input.files] : []) {
    const form = new FormData();
    form.append('file', file);
    const answer = await fetch('files', {method: 'POST', body: form}), said = await answer.json();
    if (answer.ok) names.push(said.name); else wrong = said.error.message;
  }
  if (names.length || wrong) trigger('click', {do: 'brought', at: names.join(' '), wrong: wrong});
});
const down = () => { const log = element.querySelector('.talk'); if (log) log.scrollTop = log.scrollHeight; };
element.addEventListener('load', down, true);
element.addEventListener('loadeddata', down, true);
watch('value', down);
