// A small live chart: one line over time, the area below it, and a readout under the pointer.
// Everything is drawn by attributes of SVG elements, so it needs no inline style.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300, HEIGHT = 64;

function svg(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** The next of 1, 1.5, 2, 3, 4, 6, 8, 10, 15, … : a scale that does not jump with each value. */
export function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(Math.max(value, 1)));
  return power * [1, 1.5, 2, 3, 4, 6, 8, 10].find(step => step * power >= value);
}

export class Chart {
  constructor(parent, title, kind, words) {
    this.title = title;
    this.words = words;
    this.figure = document.createElement("figure");
    this.figure.className = `card chart ${kind}`;
    const caption = document.createElement("figcaption");
    this.name = document.createElement("span");
    this.name.textContent = title;
    this.value = document.createElement("strong");
    this.value.textContent = "–";
    caption.append(this.name, this.value);
    this.image = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
    this.area = svg("path", { class: "area" });
    this.line = svg("path", { class: "line" });
    this.cursor = svg("line", { class: "cursor", y1: 0, y2: HEIGHT, visibility: "hidden" });
    this.image.append(svg("line", { class: "base", x1: 0, x2: WIDTH, y1: HEIGHT - 1, y2: HEIGHT - 1 }), this.area, this.line, this.cursor);
    this.scale = document.createElement("p");
    this.scale.className = "scale";
    this.figure.append(caption, this.image, this.scale);
    parent.append(this.figure);
    this.points = [];
    this.image.addEventListener("pointermove", event => this.point(event));
    this.image.addEventListener("pointerleave", () => { this.pointed = null; this.tell(); });
  }

  /** points: [milliseconds, value] in order; shown from `from` to `to`, to the right. */
  draw(points, from, to) {
    this.points = points;
    this.minutes = `${Math.round((to - from) / 60_000)} min`;
    this.at = time => (time - from) / (to - from) * WIDTH;
    this.top = ceiling(points.reduce((most, [, value]) => Math.max(most, value), 0));
    const path = points.map(([time, value]) =>
      `${this.at(time).toFixed(1)},${(HEIGHT - 1 - value / this.top * (HEIGHT - 4)).toFixed(1)}`).join("L");
    this.line.setAttribute("d", path && `M${path}`);
    this.area.setAttribute("d", path && `M${path}L${this.at(points.at(-1)[0]).toFixed(1)},${HEIGHT}L${this.at(points[0][0]).toFixed(1)},${HEIGHT}Z`);
    this.tell();
  }

  point(event) {
    const box = this.image.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * WIDTH;
    this.pointed = x;
    this.tell();
  }

  tell() {
    const last = this.points.at(-1);
    if (!last) return;
    const distance = point => Math.abs(this.at(point[0]) - this.pointed);
    const shown = this.pointed == null ? last : this.points.reduce((best, point) => distance(point) < distance(best) ? point : best);
    this.cursor.setAttribute("visibility", this.pointed == null ? "hidden" : "visible");
    this.cursor.setAttribute("x1", this.at(shown[0]));
    this.cursor.setAttribute("x2", this.at(shown[0]));
    const ago = Math.round((last[0] - shown[0]) / 1000);
    this.value.textContent = this.words(shown[1]);
    this.scale.textContent = this.pointed == null ? `${this.minutes}, up to ${this.words(this.top)}` : ago ? `${ago} s before` : "now";
    this.image.setAttribute("aria-label", `${this.title}: ${this.words(last[1])} now; the scale ends at ${this.words(this.top)}`);
  }
}
