"use strict";
// Shows the value nearest to the pointer under a figure. Without it the page says the same in pictures and tables.
(() => {
  const charts = JSON.parse(document.getElementById("chart-values").textContent);
  const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 4 });
  const written = (value) => Math.abs(value) >= 1e12 ? value.toExponential(2).replace("+", "") : compact.format(value).replace("K", "k");
  const fraction = (value, low, high, isLog) =>
    isLog ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);

  for (const drawing of document.querySelectorAll("svg[data-chart]")) {
    const chart = charts[drawing.dataset.chart];
    const readout = drawing.closest("figure").querySelector(".readout");
    if (!chart || drawing.dataset.chart === "strip") continue;
    const [left, right, top, bottom] = drawing.dataset.frame.split(",").map(Number);
    const [xLow, xHigh, xIsLog, yLow, yHigh, yIsLog] = drawing.dataset.axes.split(",").map(Number);
    const places = chart.series.flatMap((series) => series.points.map(([x, y], index) => ({
      x, y, text: series.texts && series.texts[index], name: series.name,
      across: left + (right - left) * fraction(x, xLow, xHigh, xIsLog),
      down: bottom - (bottom - top) * fraction(y, yLow, yHigh, yIsLog),
    }))).filter((place) => place.down >= top - 1 && place.down <= bottom + 1);
    const ring = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    ring.setAttribute("class", "ring");
    ring.setAttribute("r", "8");

    const show = (event) => {
      const box = drawing.getBoundingClientRect();
      const scale = drawing.viewBox.baseVal.width / box.width;
      const across = (event.clientX - box.left) * scale, down = (event.clientY - box.top) * scale;
      let nearest = null, distance = 60;  // pixels; marks get 12 ahead of the lines that run through them
      for (const place of places) {
        const away = Math.hypot(place.across - across, place.down - down) - (place.text ? 12 : 0);
        if (away < distance) { nearest = place; distance = away; }
      }
      if (!nearest) return hide();
      ring.setAttribute("cx", nearest.across);
      ring.setAttribute("cy", nearest.down);
      drawing.append(ring);
      readout.hidden = false;
      readout.textContent = nearest.text || `${nearest.name}: ${nearest.y.toFixed(4)} at ${chart.x}: ${written(nearest.x)}`;
    };
    const hide = () => { ring.remove(); readout.textContent = ""; };
    drawing.addEventListener("pointermove", show);
    drawing.addEventListener("pointerdown", show);
    drawing.addEventListener("pointerleave", hide);
  }
})();
