// Texts of the app whose contrast to what lies behind them is below 4.5 to 1 (WCAG 2, AA); disabled controls aside.
() => {
  const luminance = ([r, g, b]) => {
    const part = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  };
  const parsed = (text) => {
    const found = (text || "").match(/[\d.]+/g);
    return found && [+found[0], +found[1], +found[2], found.length > 3 ? +found[3] : 1];
  };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3]));
  const ground = (element) => {
    const layers = [];
    for (let e = element; e; e = e.parentElement) {
      const colour = parsed(getComputedStyle(e).backgroundColor);
      if (colour && colour[3] > 0) layers.push(colour);
      if (colour && colour[3] === 1) break;
    }
    return layers.reverse().reduce((below, above) => over(above, below), [255, 255, 255]);
  };
  const app = document.querySelector(".aq");
  const faint = [];
  for (const e of app.querySelectorAll("*:not(style):not(script)")) {
    const box = e.getBoundingClientRect();
    const style = getComputedStyle(e);
    if (!box.width || !box.height || style.visibility === "hidden" || e.closest(":disabled")) continue;
    const typed = ["INPUT", "SELECT", "TEXTAREA"].includes(e.tagName);
    const own = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent).join("").trim();
    const text = typed ? e.value || e.placeholder || "" : own;
    const colour = parsed(e.namespaceURI.includes("svg") ? style.fill : style.color);
    if (!text || !colour) continue;
    const opacity = [...(function* () { for (let n = e; n && n !== app; n = n.parentElement) yield n; })()]
      .reduce((product, n) => product * +getComputedStyle(n).opacity, 1);
    const behind = ground(e);
    const [a, b] = [over([...colour.slice(0, 3), colour[3] * opacity], behind), behind].map((c) => luminance(c) + 0.05);
    const ratio = Math.max(a, b) / Math.min(a, b);
    if (ratio < 4.5) faint.push(`${text.slice(0, 40)}: ${ratio.toFixed(2)}`);
  }
  return faint;
}
