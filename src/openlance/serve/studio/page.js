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
const stroke = (canvas, event) => {
  const place = canvas.getBoundingClientRect(), scale = canvas.width / place.width, pen = canvas.getContext('2d');
  const at = [(event.clientX - place.left) * scale, (event.clientY - place.top) * scale];
  pen.lineCap = 'round';
  pen.strokeStyle = 'white';
  pen.lineWidth = canvas.width * element.querySelector('.brush input').value / 100;
  pen.beginPath();
  pen.moveTo(...(canvas.last || at));
  pen.lineTo(...at);
  pen.stroke();
  canvas.last = at;
};
const bring = (canvas) => {
  const whole = Object.assign(document.createElement('canvas'), {width: canvas.width, height: canvas.height});
  const pen = whole.getContext('2d');
  pen.fillRect(0, 0, whole.width, whole.height);
  pen.drawImage(canvas, 0, 0);
  whole.toBlob(async (blob) => {
    const form = new FormData();
    form.append('file', blob, 'mask.png');
    const answer = await fetch('files', {method: 'POST', body: form});
    trigger('click', {do: 'painted', ...(await answer.json())});
  });
};
element.addEventListener('pointerdown', (event) => {
  if (!event.target.closest('.brush canvas')) return;
  event.target.setPointerCapture(event.pointerId);
  stroke(event.target, event);
  event.preventDefault();
});
element.addEventListener('pointermove', (event) => {
  if (event.target.last) stroke(event.target, event);
});
element.addEventListener('pointerup', (event) => {
  if (!event.target.last) return;
  event.target.last = null;
  bring(event.target);
});
element.addEventListener('click', (event) => {
  const canvas = event.target.closest('button[data-do=clear]') && element.querySelector('.brush canvas');
  if (canvas) canvas.getContext('2d').clearRect(0, 0, canvas.width, canvas.height);
});
// The layer for painting has the pixels of what is below it, and shows what was painted before.
const layer = (event) => {
  const canvas = event.target.closest('.brush') && element.querySelector('.brush canvas');
  if (!canvas) return;
  canvas.width = event.target.naturalWidth || event.target.videoWidth;
  canvas.height = event.target.naturalHeight || event.target.videoHeight;
  if (!canvas.dataset.mask) return;
  const before = new Image(), pen = canvas.getContext('2d', {willReadFrequently: true});
  before.onload = () => {
    pen.drawImage(before, 0, 0);
    const levels = pen.getImageData(0, 0, canvas.width, canvas.height);
    for (let n = 0; n < levels.data.length; n += 4) levels.data[n + 3] = levels.data[n];
    pen.putImageData(levels, 0, 0);
  };
  before.src = canvas.dataset.mask;
};
element.addEventListener('load', layer, true);
element.addEventListener('loadedmetadata', layer, true);
const down = () => { const log = element.querySelector('.talk'); if (log) log.scrollTop = log.scrollHeight; };
element.addEventListener('load', down, true);
element.addEventListener('loadeddata', down, true);
watch('value', down);
