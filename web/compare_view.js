/**
 * Two pictures under a slider: a piece of DOM that knows nothing of ComfyUI.
 *
 * The divider moves by dragging or with the arrow keys; zoomed in, dragging elsewhere pans. At 100 % one pixel of the
 * picture is one pixel of the screen, whatever the zoom of the graph around it.
 */

/**
 * What survives undo, loading and a reload of the page.
 * @typedef {object} CompareState
 * @property {number} position place of the divider, 0 to 1 across the visible part of the picture
 * @property {number} zoom screen pixels for a pixel of the picture; 0 = fit the whole picture
 * @property {number} x centre of the view, 0 to 1 across the picture
 * @property {number} y the same, down the picture
 * @property {number} index which pair of the batch
 * @property {boolean} difference show |after - before| instead of the slider
 */

/** @type {Readonly<CompareState>} */
export const INITIAL_STATE = Object.freeze({ position: 0.5, zoom: 0, x: 0.5, y: 0.5, index: 0, difference: false });

const ZOOMS = /** @type {const} */ ([
  { zoom: 0, title: "fitTitle" },
  { zoom: 1, title: "fullTitle" },
  { zoom: 2, title: "doubleTitle" },
]);
/** Brightens the difference, which is faint; `compare.css` has the same factor. */
const DIFFERENCE_GAIN = 4;
/** Pixels around the divider that still grab it. */
const GRAB = 16;
const STEP = 0.02;

export class CompareView {
  /**
   * @param {object} options
   * @param {(state: CompareState) => void} options.onChange called after every change by the user
   * @param {() => number} options.screenScale screen pixels for a CSS pixel of this element
   * @param {ReturnType<typeof import("./texts.js").textsIn>} options.text what it says, by key
   */
  constructor({ onChange, screenScale, text }) {
    this.text = text;
    this.onChange = onChange;
    this.screenScale = screenScale;
    /** @type {CompareState} */
    this.state = { ...INITIAL_STATE };
    /** @type {{before: string[], after: string[]}} */
    this.pictures = { before: [], after: [] };
    this.missing = false;
    this.drawnScale = 0;

    this.before = picture("before");
    this.after = picture("after");
    this.frame = element("div", "rddm-compare-frame", this.before, this.after);
    this.divider = element("div", "rddm-compare-divider", element("div", "rddm-compare-handle"));
    this.captions = [caption(text("before")), caption(text("after")), caption(text("gain", DIFFERENCE_GAIN))];
    this.stage = element("div", "rddm-compare-stage", this.frame, this.divider, ...this.captions);
    // Beside the stage: what is inside a slider is not read out.
    this.message = element("p", "rddm-compare-message");
    this.message.setAttribute("role", "status");
    this.stage.tabIndex = 0;

    this.previous = button("‹", text("previous"), () => this.show(this.state.index - 1));
    this.next = button("›", text("next"), () => this.show(this.state.index + 1));
    this.counter = element("span", "rddm-compare-counter");
    this.counter.setAttribute("aria-live", "polite");
    this.batch = element("div", "rddm-compare-group", this.previous, this.counter, this.next);
    this.zooms = ZOOMS.map(({ zoom, title }) =>
      button(zoom ? `${100 * zoom} %` : text("fit"), text(title), () => this.zoomTo(zoom)),
    );
    const zoomGroup = element("div", "rddm-compare-group", ...this.zooms);
    zoomGroup.setAttribute("role", "group");
    zoomGroup.setAttribute("aria-label", text("zoom"));
    this.differ = button(text("difference"), text("differenceTitle"), () => {
      this.change({ difference: !this.state.difference });
    });
    this.bar = element("div", "rddm-compare-bar", this.batch, zoomGroup, this.differ);
    this.bar.setAttribute("role", "toolbar");
    this.bar.setAttribute("aria-label", text("view"));
    this.element = element("div", "rddm-compare", this.stage, this.message, this.bar);

    for (const image of [this.before, this.after]) {
      image.addEventListener("load", () => this.layout());
      image.addEventListener("error", () => {
        this.missing = true;
        this.layout();
      });
    }
    this.stage.addEventListener("pointerdown", (event) => this.startDrag(event));
    this.stage.addEventListener("dblclick", () => this.change({ position: 0.5, x: 0.5, y: 0.5 }));
    this.element.addEventListener("keydown", (event) => this.handleKey(event));
    this.resizes = new ResizeObserver(() => this.layout());
    this.layout();
  }

  /** Follow the element's size, until `stop`; the element itself belongs to whoever placed it. */
  start() {
    this.resizes.observe(this.stage);
  }

  /** No longer; `start` may follow. */
  stop() {
    this.resizes.disconnect();
  }

  /**
   * Show other pictures. A single one on one side goes with each of the other side.
   * @param {string[]} before addresses
   * @param {string[]} after addresses
   */
  setPictures(before, after) {
    this.pictures = { before, after };
    this.load();
  }

  /** @param {Partial<CompareState>} state e.g. from a saved workflow; what is missing or invalid gets its default */
  setState(state) {
    const merged = { ...INITIAL_STATE, ...state };
    this.state = {
      position: fraction(merged.position),
      zoom: ZOOMS.some(({ zoom }) => zoom === merged.zoom) ? merged.zoom : 0,
      x: fraction(merged.x),
      y: fraction(merged.y),
      index: Number.isInteger(merged.index) ? Math.max(0, merged.index) : 0,
      difference: merged.difference === true,
    };
    this.load();
  }

  /** Number of pairs. */
  get count() {
    const { before, after } = this.pictures;
    return before.length && after.length ? Math.max(before.length, after.length) : 0;
  }

  /** @param {number} index which pair to show */
  show(index) {
    const last = Math.max(0, this.count - 1);
    this.change({ index: Math.min(last, Math.max(0, index)) });
    this.load();
  }

  /** @param {number} zoom 0 = fit */
  zoomTo(zoom) {
    this.change({ zoom });
  }

  /** @param {Partial<CompareState>} changes made by the user */
  change(changes) {
    Object.assign(this.state, changes);
    this.layout();
    this.onChange({ ...this.state });
  }

  /** Put the pictures of the current pair into the page. */
  load() {
    const { before, after } = this.pictures;
    this.missing = false;
    // Without pictures yet, e.g. while a workflow loads, the wanted pair is kept for when they come.
    if (this.count) this.state.index = Math.min(this.state.index, this.count - 1);
    const { index } = this.state;
    for (const [image, addresses] of /** @type {[HTMLImageElement, string[]][]} */ ([
      [this.before, before],
      [this.after, after],
    ])) {
      const address = this.count ? (addresses[Math.min(index, addresses.length - 1)] ?? "") : "";
      if (image.getAttribute("src") === address) continue;
      if (address) image.src = address;
      else image.removeAttribute("src");
    }
    this.layout();
  }

  /** Place everything; cheap, and called whenever something it depends on has changed. */
  layout() {
    const { zoom, difference, index, position } = this.state;
    const ready = this.count > 0 && !this.missing && this.after.naturalWidth > 0;
    this.element.classList.toggle("rddm-compare-ready", ready);
    this.element.classList.toggle("rddm-compare-difference", difference);
    this.element.classList.toggle("rddm-compare-zoomed", zoom > 0);
    this.element.classList.toggle("rddm-compare-pixels", zoom >= 2);
    say(this.message, ready ? "" : this.text(this.missing ? "missing" : "empty"));
    this.batch.hidden = this.count < 2;
    say(this.counter, this.count < 2 ? "" : `${index + 1} / ${this.count}`);
    this.previous.disabled = index === 0;
    this.next.disabled = index >= this.count - 1;
    this.zooms.forEach((each, i) => each.setAttribute("aria-pressed", String(zoom === ZOOMS[i].zoom)));
    this.differ.setAttribute("aria-pressed", String(difference));
    this.describe();
    if (!ready) return;

    const box = this.box();
    Object.assign(this.frame.style, {
      left: `${box.left}px`,
      top: `${box.top}px`,
      width: `${box.width}px`,
      height: `${box.height}px`,
    });
    const at = box.visibleLeft + position * box.visibleWidth;
    this.divider.style.left = `${at}px`;
    this.divider.style.top = `${Math.max(0, box.top)}px`;
    this.divider.style.height = `${Math.min(this.stage.clientHeight, box.height)}px`;
    this.after.style.clipPath = difference ? "" : `inset(0 0 0 ${Math.max(0, at - box.left)}px)`;
  }

  /** Lay out again if the screen's scale has changed; for whoever zooms the page around this element. */
  refresh() {
    if (this.state.zoom > 0 && this.screenScale() !== this.drawnScale) this.layout();
  }

  /** The picture in pixels of the stage, and which part of its width is visible. */
  box() {
    const { zoom, x, y } = this.state;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    const [wide, high] = [this.after.naturalWidth, this.after.naturalHeight];
    this.drawnScale = this.screenScale();
    const scale = zoom > 0 ? zoom / this.drawnScale : Math.min(width / wide, height / high);
    const left = offset(width, wide * scale, x);
    const top = offset(height, high * scale, y);
    const visibleLeft = Math.max(0, left);
    const visibleWidth = Math.min(width, left + wide * scale) - visibleLeft;
    return { left, top, width: wide * scale, height: high * scale, visibleLeft, visibleWidth };
  }

  /** Tell screen readers what is seen. */
  describe() {
    const { position, difference } = this.state;
    const percent = Math.round(position * 100);
    setAttributes(this.stage, {
      role: "slider",
      "aria-label": this.text("slider"),
      "aria-orientation": "horizontal",
      "aria-valuemin": "0",
      "aria-valuemax": "100",
      "aria-valuenow": String(percent),
      "aria-valuetext": difference
        ? this.text("differenceValue")
        : this.text("sliderValue", percent, 100 - percent),
      "aria-disabled": String(this.count === 0),
    });
  }

  /** @param {PointerEvent} start */
  startDrag(start) {
    if (start.button !== 0 || this.count === 0 || !this.after.naturalWidth) return;
    start.stopPropagation();
    this.stage.focus({ preventScroll: true });
    const bounds = this.stage.getBoundingClientRect();
    const shrink = this.stage.offsetWidth / bounds.width; // the graph around it may be scaled
    const from = this.box();
    const dividerAt = from.visibleLeft + this.state.position * from.visibleWidth;
    const startsAt = (start.clientX - bounds.left) * shrink;
    const { zoom, x, y, difference } = this.state;
    const pans = zoom > 0 && (difference || Math.abs(startsAt - dividerAt) > GRAB);
    if (!pans && difference) return;

    const move = (/** @type {PointerEvent} */ event) => {
      event.stopPropagation();
      if (pans) {
        this.change({
          x: inside(x - ((event.clientX - start.clientX) * shrink) / from.width, this.stage.clientWidth / from.width),
          y: inside(y - ((event.clientY - start.clientY) * shrink) / from.height, this.stage.clientHeight / from.height),
        });
      } else {
        const at = (event.clientX - bounds.left) * shrink;
        this.change({ position: fraction((at - from.visibleLeft) / from.visibleWidth) });
      }
    };
    const end = () => {
      this.stage.removeEventListener("pointermove", move);
      this.element.classList.remove("rddm-compare-panning");
    };
    this.element.classList.toggle("rddm-compare-panning", pans);
    this.stage.setPointerCapture(start.pointerId);
    this.stage.addEventListener("pointermove", move);
    this.stage.addEventListener("lostpointercapture", end, { once: true });
    if (!pans) move(start);
  }

  /** @param {KeyboardEvent} event */
  handleKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const onStage = event.target === this.stage;
    const action = this.keys(event.shiftKey && this.state.zoom > 0, event.shiftKey ? 5 * STEP : STEP)[event.key];
    if (!action || (!onStage && event.key.startsWith("Arrow"))) return;
    // The graph has shortcuts on the same keys.
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  /**
   * @param {boolean} panning whether arrows pan instead of moving the divider
   * @param {number} step
   * @returns {Record<string, () => void>}
   */
  keys(panning, step) {
    const { position, x, y, difference } = this.state;
    const divide = (/** @type {number} */ to) => () => this.change({ position: fraction(to) });
    const pan = (/** @type {number} */ right, /** @type {number} */ down) => () =>
      this.change({ x: fraction(x + right), y: fraction(y + down) });
    const arrows = panning
      ? { ArrowLeft: pan(-step, 0), ArrowRight: pan(step, 0), ArrowUp: pan(0, -step), ArrowDown: pan(0, step) }
      : {
          ArrowLeft: divide(position - step),
          ArrowRight: divide(position + step),
          ArrowDown: divide(position - step),
          ArrowUp: divide(position + step),
        };
    return {
      ...arrows,
      Home: divide(0),
      End: divide(1),
      PageUp: () => this.show(this.state.index - 1),
      PageDown: () => this.show(this.state.index + 1),
      d: () => this.change({ difference: !difference }),
      D: () => this.change({ difference: !difference }),
      ...Object.fromEntries(ZOOMS.map(({ zoom }) => [String(zoom), () => this.zoomTo(zoom)])),
    };
  }
}

/**
 * Where a picture begins, so that the point at `centre` comes to the middle, without leaving room at an edge.
 * @param {number} room
 * @param {number} size
 * @param {number} centre 0 to 1
 */
function offset(room, size, centre) {
  if (size <= room) return (room - size) / 2;
  return Math.min(0, Math.max(room - size, room / 2 - centre * size));
}

/**
 * A centre that `offset` reaches, so that dragging back answers at once after the edge was hit.
 * @param {number} centre
 * @param {number} visible share of the picture that is visible
 */
function inside(centre, visible) {
  return visible >= 1 ? 0.5 : Math.min(1 - visible / 2, Math.max(visible / 2, centre));
}

/** @param {unknown} value */
function fraction(value) {
  return typeof value === "number" && Number.isFinite(value) ? Math.min(1, Math.max(0, value)) : 0.5;
}

/** @param {string} side */
function picture(side) {
  const image = document.createElement("img");
  image.className = `rddm-compare-${side}`;
  image.alt = side;
  image.draggable = false;
  return image;
}

/** @param {string} text */
function caption(text) {
  const made = element("span", "rddm-compare-caption");
  made.textContent = text;
  made.setAttribute("aria-hidden", "true");
  return made;
}

/**
 * @param {string} text
 * @param {string} title
 * @param {() => void} action
 */
function button(text, title, action) {
  const made = document.createElement("button");
  made.type = "button";
  made.textContent = text;
  made.title = title;
  if (text.length === 1) made.setAttribute("aria-label", title);
  made.addEventListener("click", action);
  return made;
}

/**
 * Screen readers read a live text out again whenever it is set, even to what it was.
 * @param {HTMLElement} live
 * @param {string} text
 */
function say(live, text) {
  if (live.textContent !== text) live.textContent = text;
}

/**
 * @param {string} tag
 * @param {string} className
 * @param {...HTMLElement} children
 */
function element(tag, className, ...children) {
  const made = document.createElement(tag);
  made.className = className;
  made.append(...children);
  return made;
}

/**
 * @param {HTMLElement} target
 * @param {Record<string, string>} attributes
 */
function setAttributes(target, attributes) {
  for (const [name, value] of Object.entries(attributes)) target.setAttribute(name, value);
}
