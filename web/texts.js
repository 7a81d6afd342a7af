/** What the scripts say, in the languages of `locales/`. The nodes' own texts lie there. */

/** @typedef {keyof typeof TEXTS.en} TextKey */

/** English stands for every language that is not here. `{}` is a place for a number or a name. */
export const TEXTS = {
  en: {
    correct: "correct by hand",
    correctTooltip: "Open the estimated map in the mask editor. Saving there puts your version in its place.",
    correctedMap: "Corrected map",
    runFirst: "Run the workflow once: the map must be estimated before it can be corrected.",
    estimateGone: "The estimated map is no longer on the server. Run the workflow again.",
    correctedGone: 'The picture of the node "{}" is no longer on the server. Delete it to begin anew.',
    firstOfBatch: "This is the map of the first of {} pictures. Once corrected it serves all of them.",
    empty: "Run the workflow to compare the two pictures.",
    missing: "These pictures are no longer on the server. Run the workflow again.",
    before: "before",
    after: "after",
    gain: "difference × {}",
    previous: "Previous pair (Page Up)",
    next: "Next pair (Page Down)",
    zoom: "Zoom",
    fit: "Fit",
    fitTitle: "Show the whole picture (0)",
    fullTitle: "One pixel of the picture on one of the screen (1)",
    doubleTitle: "One pixel of the picture on two by two of the screen (2)",
    difference: "Difference",
    differenceTitle: "Show what changed (D)",
    view: "View",
    slider: "Before and after",
    sliderValue: "{} % before, {} % after",
    differenceValue: "difference of the two pictures",
  },
  zh: {
    correct: "手动修正",
    correctTooltip: "在遮罩编辑器中打开估计的失焦图。在其中保存后，即以您的版本代替它。",
    correctedMap: "修正后的失焦图",
    runFirst: "请先运行一次工作流：失焦图要先估计出来才能修正。",
    estimateGone: "估计的失焦图已不在服务器上。请重新运行工作流。",
    correctedGone: "节点“{}”的图像已不在服务器上。删除该节点即可重新开始。",
    firstOfBatch: "这是 {} 张图像中第一张的失焦图。修正后将用于所有图像。",
    empty: "运行工作流后即可对比两张图像。",
    missing: "这些图像已不在服务器上。请重新运行工作流。",
    before: "之前",
    after: "之后",
    gain: "差异 × {}",
    previous: "上一对（Page Up）",
    next: "下一对（Page Down）",
    zoom: "缩放",
    fit: "适应",
    fitTitle: "显示整张图像（0）",
    fullTitle: "图像的一个像素对应屏幕的一个像素（1）",
    doubleTitle: "图像的一个像素对应屏幕的两乘两个像素（2）",
    difference: "差异",
    differenceTitle: "显示改动之处（D）",
    view: "视图",
    slider: "之前与之后",
    sliderValue: "之前 {} %，之后 {} %",
    differenceValue: "两张图像的差异",
  },
  ja: {
    correct: "手で修正",
    correctTooltip: "推定したぼけマップをマスクエディターで開きます。そこで保存すると、修正版に置き換わります。",
    correctedMap: "修正したぼけマップ",
    runFirst: "まずワークフローを一度実行してください。修正の前にマップの推定が必要です。",
    estimateGone: "推定したマップはサーバーに残っていません。もう一度ワークフローを実行してください。",
    correctedGone: "ノード「{}」の画像はサーバーに残っていません。ノードを削除すると、やり直せます。",
    firstOfBatch: "{} 枚の画像のうち 1 枚目のマップです。修正すると、すべての画像に使われます。",
    empty: "ワークフローを実行すると、2 枚の画像を見比べられます。",
    missing: "これらの画像はサーバーに残っていません。もう一度ワークフローを実行してください。",
    before: "前",
    after: "後",
    gain: "差 × {}",
    previous: "前の組（Page Up）",
    next: "次の組（Page Down）",
    zoom: "拡大",
    fit: "全体",
    fitTitle: "画像全体を表示（0）",
    fullTitle: "画像の 1 ピクセルを画面の 1 ピクセルで表示（1）",
    doubleTitle: "画像の 1 ピクセルを画面の 2 × 2 ピクセルで表示（2）",
    difference: "差",
    differenceTitle: "変わった所を表示（D）",
    view: "表示",
    slider: "前と後",
    sliderValue: "前 {} %、後 {} %",
    differenceValue: "2 枚の画像の差",
  },
};

/**
 * A function that gives the texts of a language.
 * @param {string | undefined} locale the front end's name for it, such as "zh"
 * @returns {(key: TextKey, ...values: (string | number)[]) => string} `values` fill the places
 */
export function textsIn(locale) {
  const texts = Object.entries(TEXTS).find(([language]) => language === locale)?.[1] ?? TEXTS.en;
  return (key, ...values) => texts[key].replaceAll("{}", () => String(values.shift()));
}
