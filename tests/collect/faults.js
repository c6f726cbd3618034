// What a person would trip over: text that sticks out, buttons over one another or too small to hit, faint text.
() => {
  const found = [];
  const shown = (e) => e.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !e.closest('[inert], .skip');
  const name = (e) => `${e.tagName.toLowerCase()}.${e.className} "${(e.innerText || e.value || e.name || '').slice(0, 30)}"`;
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth + 1) found.push(`the page is ${wide} wide in a window of ${innerWidth}`);
  const top = document.querySelector('dialog[open]') ?? document.body;
  const targets = [...top.querySelectorAll('button, input, select, textarea, a.button, nav a')].filter(shown);
  const boxes = targets.map((e) => e.getBoundingClientRect());
  for (const [i, a] of boxes.entries()) {
    const box = ['radio', 'checkbox'].includes(targets[i].type);
    const hit = box && targets[i].closest('label') ? targets[i].closest('label').getBoundingClientRect() : a;
    if (Math.min(hit.width, hit.height) < (box ? 20 : 24)) found.push(`${name(targets[i])} is ${hit.width} × ${hit.height}`);
    for (let j = i + 1; j < boxes.length; j++) {
      const b = boxes[j];
      const over = Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
      if (over && !targets[i].contains(targets[j])) found.push(`${name(targets[i])} lies over ${name(targets[j])}`);
    }
  }
  const paint = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const colour = (text) => {
    paint.clearRect(0, 0, 1, 1); paint.fillStyle = text; paint.fillRect(0, 0, 1, 1);
    return [...paint.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (e) => {
    for (let at = e; at; at = at.parentElement) {
      const found = colour(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return colour('Canvas');
  };
  const texts = document.createTreeWalker(top, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const e = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !shown(e) || e.closest(':disabled, script, option, .veil:not(.open)')) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(colour(style.color)), light(behind(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if (ratio < (large ? 3 : 4.5)) found.push(`${name(e)} has a contrast of ${ratio.toFixed(1)}`);
    const box = e.getBoundingClientRect();
    if (e.scrollWidth > e.clientWidth + 1 && e.clientWidth && style.overflowX === 'visible' && style.display !== 'inline') {
      found.push(`${name(e)} sticks out of its box`);
    }
    const size = parseFloat(style.fontSize);
    if (texts.currentNode.data.trim().length > 12 && box.width < 5 * size && box.height > 5 * size && style.display !== 'inline') {
      found.push(`${name(e)} runs down the page in letters`);
    }
    if (box.right > innerWidth + 1 && !e.closest('nav, .scroll')) found.push(`${name(e)} ends at ${box.right} of ${innerWidth}`);
  }
  return [...new Set(found)];
}
