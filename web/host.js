/** All that the pack's scripts import from the host's front end: its deep paths exist only where the host serves them. */

// @ts-expect-error served by ComfyUI beside /extensions, no file of this repository
import { api as servedApi } from "../../scripts/api.js";
// @ts-expect-error as above
import { app as servedApp } from "../../scripts/app.js";

import { textsIn } from "./texts.js";

/** @typedef {import("@comfyorg/comfyui-frontend-types").ComfyApp} ComfyApp */
/** @typedef {import("@comfyorg/comfyui-frontend-types").ComfyExtension} ComfyExtension */
/**
 * A node, with what the front end adds to litegraph's; that part of the published types does not find its target.
 * @typedef {Parameters<NonNullable<ComfyExtension["nodeCreated"]>>[0] & {
 *   imgs?: HTMLImageElement[],
 *   addDOMWidget(name: string, type: string, element: HTMLElement, options: DOMWidgetOptions): {serialize?: boolean},
 * }} LGraphNode
 */
/** @typedef {{serialize: boolean, hideOnZoom: boolean, getMinHeight: () => number}} DOMWidgetOptions */

/**
 * The part of the host's global `LiteGraph` that is used here; its types are not published.
 * @typedef {{createNode(type: string, title?: string): LGraphNode | null}} NodeFactory
 */

/**
 * A graph inside a node, with the slots that lead out of it.
 * @typedef {NonNullable<LGraphNode["graph"]> & {
 *   outputs: {
 *     linkIds: number[],
 *     connect(slot: LGraphNode["outputs"][number], node: LGraphNode, afterRerouteId?: number): unknown,
 *   }[],
 * }} Subgraph
 */

/** @type {ComfyApp} */
export const app = servedApp;

/** @type {import("@comfyorg/comfyui-frontend-types").ComfyApi} */
export const api = servedApi;

/** The texts of `texts.js` in the user's language. */
export function texts() {
  return textsIn(app.extensionManager.setting.get("Comfy.Locale"));
}

/**
 * A file that a node saved, as the server names it.
 * @typedef {{filename: string, subfolder: string, type: string}} SavedFile
 */

/**
 * Where the browser finds such a file.
 * @param {SavedFile} file
 * @returns {string}
 */
export function fileUrl({ filename, subfolder, type }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/**
 * What the node's last run sent, also after undo, loading and a change of the workflow, which make every node anew.
 * @param {LGraphNode} node
 * @returns {Record<string, any> | undefined}
 */
export function resultsOf(node) {
  return app.nodeOutputs[locatorOf(node)];
}

/**
 * The front end's name for the node within the workflow, under which it keeps results.
 * @param {LGraphNode} node
 */
export function locatorOf(node) {
  return node.graph && !node.graph.isRootGraph ? `${node.graph.id}:${node.id}` : String(node.id);
}

/**
 * Add a style sheet to the page.
 * @param {string} name of the file beside this one
 */
export function addStyle(name) {
  const sheet = document.createElement("link");
  sheet.rel = "stylesheet";
  sheet.href = new URL(`./${name}`, import.meta.url).href;
  document.head.append(sheet);
}

/**
 * Whether the node is in the workflow that is open. Where a whole graph goes, some front ends leave `node.graph` as it
 * was, tell the nodes inside subgraphs nothing, and give the ids to the nodes of the next workflow.
 * @param {LGraphNode} node
 */
export function isLive(node) {
  const { graph } = node;
  if (graph?.getNodeById(node.id) !== node) return false;
  return graph.isRootGraph || graph.rootGraph.subgraphs.get(graph.id) === graph;
}

/**
 * Run `look` in every frame as long as the node is in a graph, and `leave` when it goes: after undo and a change of the
 * workflow the host puts results back without a word. Copying makes a node that never comes into a graph; nothing runs
 * for it.
 * @param {LGraphNode} node
 * @param {() => void} look
 * @param {() => void} [leave]
 */
export function everyFrame(node, look, leave) {
  let frame = 0;
  afterCallback(node, "onAdded", () => {
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(function watch() {
      if (!isLive(node)) {
        leave?.();
        return;
      }
      look();
      frame = requestAnimationFrame(watch);
    });
  });
  afterCallback(node, "onRemoved", () => {
    cancelAnimationFrame(frame);
    leave?.();
  });
}

/**
 * Whether the element lies over the canvas, as in the classic way of drawing nodes, and keeps the mouse from it.
 * @param {HTMLElement} element
 */
function liesOverTheCanvas(element) {
  return element.closest(".dom-widget") !== null;
}

/**
 * Let the wheel zoom the graph from above a widget's element, as everywhere else, unless it scrolls the element.
 * @param {HTMLElement} element
 * @param {() => boolean} [scrolls]
 */
export function passWheel(element, scrolls = () => false) {
  element.addEventListener(
    "wheel",
    (event) => {
      if (liesOverTheCanvas(element) && !scrolls()) app.canvas.processMouseWheel(event);
    },
    { passive: false },
  );
}

/**
 * Let the middle button move the graph from above a widget's element, as everywhere else.
 * @param {HTMLElement} element
 */
export function passMiddleButton(element) {
  element.addEventListener("pointerdown", (event) => {
    if (event.button === 1 && liesOverTheCanvas(element)) app.canvas.processMouseDown(event);
  });
  element.addEventListener("pointermove", (event) => {
    if (event.buttons & 4 && liesOverTheCanvas(element)) app.canvas.processMouseMove(event);
  });
  element.addEventListener("pointerup", (event) => {
    if (event.button === 1 && liesOverTheCanvas(element)) app.canvas.processMouseUp(event);
  });
}

/**
 * Run `after` whenever the host calls a callback of a node, without replacing what others have put there.
 * @template {"onAdded" | "onConfigure" | "onRemoved"} Name
 * @param {LGraphNode} node
 * @param {Name} name
 * @param {(argument: any) => void} after
 */
export function afterCallback(node, name, after) {
  const target = /** @type {Record<string, any>} */ (/** @type {unknown} */ (node));
  const before = target[name];
  target[name] = function (/** @type {any[]} */ ...args) {
    const result = before?.apply(this, args);
    after(args[0]);
    return result;
  };
}
