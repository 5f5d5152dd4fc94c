// The bar under the conversation: talk, camera, stop, and one line that says what is going on.
const part = (name) => element.querySelector(`[data-part=${name}]`);
const talk = part('talk'), camera = part('camera'), stopButton = part('stop'), line = part('status');
const say = (text) => { if (line.textContent !== text) line.textContent = text; };
let busy = false, run = '', recorder = null;

const player = new SpeechPlayer({on: refresh});
element.speechPlayer = player;

function refresh() {
  const speaking = player.speaking || player.pending;
  stopButton.hidden = !(busy || speaking);
  if (recorder) return;
  say(player.speaking ? 'speaking' : busy ? 'thinking' : '');
  if (player.speaking) player.pending = false;
}
function stop() {
  player.pending = false;
  player.stop();
  if (busy) trigger('halt');
  busy = false;
  refresh();
}

watch('value', () => {
  const value = props.value || {};
  busy = Boolean(value.busy);
  if (value.run && value.run !== run) {
    run = value.run;
    player.pending = true;
    player.play('gradio_api/voice/' + run).catch((error) => { player.pending = false; say('no sound: ' + error.message); });
  }
  if (!value.run && value.run !== undefined) player.stop();
  if (!busy && !value.speech) player.pending = false;
  refresh();
});

const wake = () => player.ready();
document.addEventListener('pointerdown', wake, {capture: true});
document.addEventListener('keydown', (event) => { wake(); if (event.key === 'Escape') stop(); }, {capture: true});
stopButton.addEventListener('click', stop);

const secure = Boolean(navigator.mediaDevices && navigator.mediaDevices.getUserMedia);
for (const button of [talk, camera]) {
  button.disabled = !secure;
  if (!secure) button.title = 'Microphone and camera need HTTPS, or the address http://localhost';
}
const blocked = (what, error) => say(error.name === 'NotAllowedError' ? `the browser did not allow the ${what}`
  : error.name === 'NotFoundError' ? `no ${what} was found` : `${what}: ${error.message}`);

async function startTalking() {
  stop();
  recorder = new Recorder({onLevel: (level, seconds) => {
    talk.style.setProperty('--level', level.toFixed(2));
    say(`listening, ${Math.floor(seconds)} s`);
  }});
  talk.setAttribute('aria-pressed', 'true');
  talk.querySelector('span').textContent = 'Send';
  try { await recorder.start(); } catch (error) { endTalking(); blocked('microphone', error); }
}
function endTalking() {
  recorder = null;
  talk.setAttribute('aria-pressed', 'false');
  talk.querySelector('span').textContent = 'Talk';
}
async function sendTalk() {
  const sound = await recorder.stop();
  endTalking();
  say('sending');
  const response = await fetch(new URL('gradio_api/utterance', document.baseURI), {method: 'POST', body: sound, credentials: 'same-origin'});
  const answer = await response.json();
  if (!response.ok) { say(answer.error); return; }
  say('thinking');
  trigger('turn', {id: answer.id});
}
talk.addEventListener('click', async () => {
  await player.ready();
  if (!recorder) { startTalking(); return; }
  try { await sendTalk(); } catch (error) { endTalking(); say('the recording could not be sent: ' + error.message); }
});

const view = part('preview'), film = view.querySelector('video');
const closeCamera = () => { film.srcObject?.getTracks().forEach((track) => track.stop()); film.srcObject = null; view.hidden = true; };
async function attachPhoto() {
  const canvas = new OffscreenCanvas(film.videoWidth, film.videoHeight);
  canvas.getContext('2d').drawImage(film, 0, 0);
  const blob = await canvas.convertToBlob({type: 'image/jpeg', quality: 0.9});
  const files = new DataTransfer();
  files.items.add(new File([blob], 'camera.jpg', {type: 'image/jpeg'}));
  const input = document.querySelector('#box input[type=file]');
  input.files = files.files;
  input.dispatchEvent(new Event('change', {bubbles: true}));
  closeCamera();
  say('the picture is attached; ask about it');
}
camera.addEventListener('click', async () => {
  if (!view.hidden) { closeCamera(); return; }
  try {
    film.srcObject = await navigator.mediaDevices.getUserMedia({video: {facingMode: 'environment', width: {ideal: 1280}}});
    view.hidden = false;
    await film.play();
  } catch (error) { blocked('camera', error); }
});
part('shoot').addEventListener('click', attachPhoto);
part('cancel').addEventListener('click', closeCamera);
refresh();

// On a phone the sidebar covers the page; it opens when asked for. Gradio lays it out some time after this runs.
if (matchMedia('(max-width: 768px)').matches) {
  const closing = setInterval(() => {
    const toggle = document.querySelector('.sidebar.open .toggle-button');
    if (toggle) { clearInterval(closing); toggle.click(); }
  }, 50);
  setTimeout(() => clearInterval(closing), 5000);
}
