// The map: posters as dots on a canvas, from near as pictures. Without this, the server's picture of the dots is there.
"use strict";

const NEAR_PX = 14; // how far from a dot a pointer still means it
const TAP_PX = 6; // a pointer that has moved less has clicked
const PICTURES = 48; // when so few are in sight, they are shown as pictures
const PICTURE_PX = 45; // how far from the middle of one a pointer still means it
const KEPT = 2000; // posters whose names and pictures are kept
const SIDE = 65535;
const ZOOM_MOST = 4000;
const atlas = document.getElementById("atlas");
const state = document.getElementById("state");

function addressOf(path, values) {
  return `${atlas.dataset.api}/map/${path}?${new URLSearchParams([["map", atlas.dataset.map], ...values])}`;
}

class Atlas {
  constructor(sea, panel) {
    this.panel = panel;
    this.points = new Uint16Array();
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.chosen = -1;
    this.posters = new Map(); // number of a point → what is known of its poster
    this.pointers = new Map();
    this.canvas = document.createElement("canvas");
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "application");
    this.context = this.canvas.getContext("2d");
    const buttons = document.createElement("div");
    buttons.className = "zoom";
    for (const [text, label, act] of [["+", "nearer", () => this.zoomBy(1.6)], ["−", "farther", () => this.zoomBy(1 / 1.6)], ["All", "show all", () => this.showAll()]]) {
      const button = document.createElement("button");
      button.textContent = text;
      button.ariaLabel = label;
      button.addEventListener("click", act);
      buttons.append(button);
    }
    sea.replaceChildren(this.canvas, buttons);
    const on = (name, act, options) => this.canvas.addEventListener(name, act.bind(this), options);
    on("pointerdown", this.press);
    on("pointermove", this.move);
    on("pointerup", this.release);
    on("pointercancel", this.release);
    on("wheel", this.turn, { passive: false });
    on("keydown", this.key);
    new ResizeObserver(() => this.resize()).observe(this.canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.drawSoon());
    const [x, y, zoom] = location.hash.slice(1).split(",").map(Number);
    if (zoom >= 1) this.view = { x, y, zoom: Math.min(zoom, ZOOM_MOST) };
  }

  async load() {
    const answer = await fetch(addressOf("points", []));
    if (!answer.ok) throw new Error(answer.statusText);
    const bytes = new DataView(await answer.arrayBuffer());
    this.points = Uint16Array.from({ length: bytes.byteLength / 2 }, (_, i) => bytes.getUint16(2 * i, true));
    this.posters.clear();
    this.choose(-1);
    const count = (this.points.length / 2).toLocaleString("en");
    this.canvas.ariaLabel = `Map of ${count} posters. Arrow keys go from poster to poster, Enter opens one, plus and minus zoom, 0 shows all.`;
    this.drawSoon();
  }

  // Pixels per side of the square that holds all points.
  get scale() { return (Math.min(this.width, this.height) - (this.points.length / 2 <= PICTURES ? 100 : 30)) * this.view.zoom; }
  left(point) { return (this.points[2 * point] / SIDE - this.view.x) * this.scale + this.width / 2; }
  top(point) { return (this.points[2 * point + 1] / SIDE - this.view.y) * this.scale + this.height / 2; }

  resize() {
    const ratio = devicePixelRatio || 1;
    [this.width, this.height] = [this.canvas.clientWidth, this.canvas.clientHeight];
    this.canvas.width = Math.round(this.width * ratio);
    this.canvas.height = Math.round(this.height * ratio);
    this.drawSoon();
  }

  drawSoon() {
    this.frame ??= requestAnimationFrame(() => { this.frame = undefined; if (this.width) this.draw(); });
  }

  draw() {
    const { context, canvas } = this;
    const color = getComputedStyle(document.documentElement).getPropertyValue("--accent").trim();
    context.setTransform(1, 0, 0, 1, 0, 0);
    const inSight = this.drawDots(parseInt(color.slice(1), 16));
    context.scale(canvas.width / this.width, canvas.height / this.height);
    this.reach = inSight.length <= PICTURES ? PICTURE_PX : NEAR_PX;
    if (inSight.length <= PICTURES) this.drawPictures(inSight);
    if (this.chosen < 0) return;
    context.strokeStyle = getComputedStyle(document.documentElement).getPropertyValue("--ink");
    context.lineWidth = 3;
    context.beginPath();
    const frame = inSight.length <= PICTURES && this.drawPicture(this.chosen);
    if (frame) context.rect(...frame);
    else context.arc(this.left(this.chosen), this.top(this.chosen), 8, 0, 2 * Math.PI);
    context.stroke();
  }

  // Dots into pixels: a hundred thousand take some milliseconds. Returns the points in sight, PICTURES + 1 at most.
  drawDots(color) {
    const { width, height } = this.canvas;
    const ratio = width / this.width, count = this.points.length / 2, scale = this.scale * ratio;
    const size = Math.round(ratio * Math.min(8, (count <= 3000 ? 5 : count <= 30000 ? 2.5 : 1.5) * Math.sqrt(Math.sqrt(this.view.zoom))));
    const strength = Math.min(230, (count <= 3000 ? 200 : count <= 30000 ? 110 : 60) * Math.sqrt(this.view.zoom));
    const image = this.context.createImageData(width, height), pixels = image.data, inSight = [];
    const right = width / 2 - this.view.x * scale, down = height / 2 - this.view.y * scale, half = size >> 1;
    for (let point = 0; point < count; point++) {
      const x = Math.round(this.points[2 * point] / SIDE * scale + right) - half;
      const y = Math.round(this.points[2 * point + 1] / SIDE * scale + down) - half;
      if (x < 0 || y < 0 || x + size > width || y + size > height) continue;
      if (inSight.length <= PICTURES) inSight.push(point);
      for (let row = y; row < y + size; row++) {
        for (let at = 4 * (row * width + x), end = at + 4 * size; at < end; at += 4) {
          pixels[at] = color >> 16;
          pixels[at + 1] = (color >> 8) & 255;
          pixels[at + 2] = color & 255;
          pixels[at + 3] += strength; // clamped at 255: denser where there are more
        }
      }
    }
    this.context.putImageData(image, 0, 0);
    return inSight;
  }

  drawPictures(points) {
    this.learn(points);
    for (const point of points) this.drawPicture(point);
  }

  // Returns where it is, unless it is not there yet.
  drawPicture(point) {
    const image = this.posters.get(point)?.image;
    if (!image?.naturalWidth) return undefined;
    const high = Math.min(120, Math.max(56, this.height / 6));
    const wide = high * Math.min(2, image.naturalWidth / image.naturalHeight);
    const frame = [this.left(point) - wide / 2, this.top(point) - high / 2, wide, high];
    this.context.drawImage(image, ...frame);
    return frame;
  }

  // Ask for what is not known of some points.
  async learn(points) {
    const fresh = points.filter((point) => !this.posters.has(point));
    if (!fresh.length) return;
    if (this.posters.size > KEPT) this.posters.clear();
    for (const point of fresh) this.posters.set(point, {});
    const map = atlas.dataset.map;
    try {
      const answer = await fetch(addressOf("posters", fresh.map((point) => ["point", point])));
      if (!answer.ok) throw new Error(answer.statusText);
      const found = (await answer.json()).posters;
      if (map !== atlas.dataset.map) return;
      for (const poster of found) {
        poster.image = new Image();
        poster.image.addEventListener("load", () => this.drawSoon());
        poster.image.src = `${poster.picture}?width=160`;
        this.posters.set(poster.point, poster);
      }
    } catch {
      for (const point of fresh) this.posters.delete(point); // another try, when it is needed next
      return;
    }
    this.show();
    this.drawSoon();
  }

  choose(point) {
    if (point === this.chosen) return;
    this.chosen = point;
    this.drawSoon();
    clearTimeout(this.asking);
    if (point >= 0) this.asking = setTimeout(() => { this.learn([point]); this.show(); }, 60);
    else this.show();
  }

  // The chosen poster, beside the map.
  show() {
    const poster = this.posters.get(this.chosen);
    if (this.shown === poster || (this.chosen >= 0 && !poster?.id)) return;
    this.shown = poster;
    if (!poster) { this.panel.replaceChildren(); return; }
    const card = document.createElement("a"), art = document.createElement("div"), image = new Image(), name = document.createElement("b");
    card.href = this.address(poster);
    art.className = "art";
    image.alt = "no picture";
    image.src = `${poster.picture}?width=320`;
    name.textContent = poster.title || poster.id;
    art.append(image);
    card.append(art, name);
    this.panel.replaceChildren(card);
  }

  address(poster) { return `${atlas.dataset.base}/posters/${poster.id.split("/").map(encodeURIComponent).join("/")}`; }

  async open(point) {
    await this.learn([point]);
    const poster = this.posters.get(point);
    if (poster?.id) location.href = this.address(poster);
  }

  // The point that is nearest to a place, of those that `fits` takes.
  nearest(x, y, most = Infinity, fits = () => true) {
    let found = -1, least = most * most;
    for (let point = 0; point < this.points.length / 2; point++) {
      const right = this.left(point) - x, down = this.top(point) - y, square = right * right + down * down;
      if (square < least && fits(right, down)) [found, least] = [point, square];
    }
    return found;
  }

  moved() {
    this.drawSoon();
    clearTimeout(this.noting);
    const { x, y, zoom } = this.view;
    this.noting = setTimeout(() => history.replaceState(null, "", `#${x.toFixed(5)},${y.toFixed(5)},${zoom.toFixed(2)}`), 300);
  }

  panBy(right, down) {
    const within = (value) => Math.min(1, Math.max(0, value));
    this.view.x = within(this.view.x - right / this.scale);
    this.view.y = within(this.view.y - down / this.scale);
    this.moved();
  }

  // What is at (x, y) stays there.
  zoomBy(factor, x = this.width / 2, y = this.height / 2) {
    const before = this.scale;
    this.view.zoom = Math.min(ZOOM_MOST, Math.max(1, this.view.zoom * factor));
    this.view.x += (x - this.width / 2) * (1 / before - 1 / this.scale);
    this.view.y += (y - this.height / 2) * (1 / before - 1 / this.scale);
    this.panBy(0, 0);
  }

  showAll() {
    this.view = { x: 0.5, y: 0.5, zoom: 1 };
    this.moved();
  }

  press(event) {
    this.canvas.setPointerCapture(event.pointerId);
    this.pointers.set(event.pointerId, { x: event.offsetX, y: event.offsetY });
    if (this.pointers.size === 1) this.way = 0;
  }

  move(event) {
    const before = this.pointers.get(event.pointerId), x = event.offsetX, y = event.offsetY;
    if (!before) { this.choose(this.nearest(x, y, this.reach)); return; }
    const other = [...this.pointers].find(([id]) => id !== event.pointerId)?.[1];
    this.way += Math.hypot(x - before.x, y - before.y);
    if (other) {
      const ratio = Math.hypot(x - other.x, y - other.y) / Math.max(1, Math.hypot(before.x - other.x, before.y - other.y));
      this.zoomBy(ratio, other.x, other.y);
    } else if (this.way > TAP_PX) {
      this.panBy(x - before.x, y - before.y);
    }
    this.pointers.set(event.pointerId, { x, y });
  }

  release(event) {
    const isTap = this.pointers.delete(event.pointerId) && !this.pointers.size && this.way <= TAP_PX;
    if (!isTap || event.type !== "pointerup" || event.button !== 0) return;
    const point = this.nearest(event.offsetX, event.offsetY, event.pointerType === "mouse" ? this.reach : Math.max(this.reach, 2 * NEAR_PX));
    // A finger does not hover: it shows the poster first, and opens it the second time.
    if (point >= 0 && (event.pointerType === "mouse" || point === this.chosen)) this.open(point);
    else this.choose(point);
  }

  turn(event) {
    event.preventDefault();
    this.zoomBy(Math.exp(-Math.sign(event.deltaY) * Math.min(0.5, Math.abs(event.deltaY) / 300)), event.offsetX, event.offsetY);
  }

  key(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (ways[event.key]) this.step(...ways[event.key]);
    else if (event.key === "Enter" && this.chosen >= 0) this.open(this.chosen);
    else if (event.key === "+" || event.key === "=") this.zoomBy(1.6, ...this.center());
    else if (event.key === "-") this.zoomBy(1 / 1.6, ...this.center());
    else if (event.key === "0") this.showAll();
    else return;
    event.preventDefault();
  }

  center() { return this.chosen < 0 ? [] : [this.left(this.chosen), this.top(this.chosen)]; }

  // To the nearest poster in a direction; the first one is the nearest to the middle.
  step(right, down) {
    const [x, y] = this.chosen < 0 ? [this.width / 2, this.height / 2] : this.center();
    const isAhead = (dx, dy) => dx * right + dy * down > Math.max(0.5, Math.abs(dx * down) + Math.abs(dy * right));
    const point = this.nearest(x, y, Infinity, this.chosen < 0 ? undefined : isAhead);
    if (point < 0) return;
    this.choose(point);
    const [left, top] = this.center();
    if (left < 0 || top < 0 || left > this.width || top > this.height) this.panBy(this.width / 2 - left, this.height / 2 - top);
  }
}

if (atlas?.dataset.map) {
  const map = new Atlas(atlas.querySelector(".sea"), atlas.querySelector(".shown"));
  const load = () => map.load().catch(() => document.querySelector(".lost").classList.add("on"));
  load();
  // The live part above names the newest map.
  new MutationObserver(() => {
    const newest = state.querySelector("[data-map]")?.dataset.map;
    if (!newest || newest === atlas.dataset.map) return;
    atlas.dataset.map = newest;
    load();
  }).observe(state, { childList: true });
} else if (atlas) {
  new MutationObserver(() => { if (state.querySelector("[data-map]")) location.reload(); }).observe(state, { childList: true });
}
