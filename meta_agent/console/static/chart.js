// The chart of a rollout: candidate against stable, and the evidence with the line at which it is aborted.
"use strict";
(() => {
  const root = document.querySelector("[data-rollout-chart]");
  if (!root) return;
  const id = root.dataset.rolloutChart;
  const select = document.querySelector("[data-metric]");
  const nothing = document.querySelector("[data-chart-empty]");
  let rows = [];
  let plots = [];
  let final = root.dataset.final === "yes";

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const formats = {
    failure: (v) => (v * 100).toFixed(1) + " %",
    violation: (v) => (v * 100).toFixed(1) + " %",
    latency: (v) => v < 1000 ? Math.round(v) + " ms" : (v / 1000).toFixed(2) + " s",
    cost: (v) => "$" + Number(v.toPrecision(3)),
  };
  const significant = (v) => v >= 1e5 || (v > 0 && v < 1e-3) ? v.toExponential(0) : String(Number(v.toPrecision(3)));

  function series() {
    const found = rows.map((row) => [row, (row.metrics || []).find((each) => each.name === select.value)]).filter((pair) => pair[1]);
    const column = (name) => found.map((pair) => { const v = pair[1][name]; return v === undefined ? null : v; });
    const times = found.map((pair) => Date.parse(pair[0].at) / 1000);
    const positive = (values) => values.map((v) => v === null ? null : Math.max(v, 1e-3));
    return { found, times, rate: [times, column("candidate"), column("stable")], evidence: [times, positive(column("e_value")), positive(column("threshold"))] };
  }

  // Where the weight changed: a line and the new share.
  function stepsPlugin(found) {
    return { hooks: { draw: [(u) => {
      const context = u.ctx;
      context.save();
      context.strokeStyle = colour("--line-strong");
      context.fillStyle = colour("--muted");
      context.font = 11 * devicePixelRatio + "px system-ui, sans-serif";
      context.textAlign = "left";
      context.textBaseline = "alphabetic";
      context.setLineDash([3 * devicePixelRatio, 3 * devicePixelRatio]);
      let last = null, edge = -Infinity;
      for (const [row] of found) {
        const label = row.state === "shadow" ? "shadow" : Math.round(row.weight * 100) + " %";
        if (label === last) continue;
        last = label;
        const x = Math.round(u.valToPos(Date.parse(row.at) / 1000, "x", true));
        context.beginPath();
        context.moveTo(x, u.bbox.top);
        context.lineTo(x, u.bbox.top + u.bbox.height);
        context.stroke();
        const width = context.measureText(label).width;
        if (x + 4 > edge && x + width < u.bbox.left + u.bbox.width) {
          context.fillText(label, x + 4 * devicePixelRatio, u.bbox.top + 11 * devicePixelRatio);
          edge = x + width + 12 * devicePixelRatio;
        }
      }
      context.restore();
    }] } };
  }

  function tipPlugin(names, format) {
    let tip;
    return { hooks: {
      init: [(u) => { tip = document.createElement("div"); tip.className = "tip"; tip.hidden = true; u.over.appendChild(tip); u.over.addEventListener("mouseleave", () => { tip.hidden = true; }); }],
      setCursor: [(u) => {
        const at = u.cursor.idx;
        if (at === null || at === undefined || u.cursor.left < 0) { tip.hidden = true; return; }
        const lines = names.map((name, index) => { const v = u.data[index + 1][at]; return name + "  " + (v === null ? "–" : format(v)); });
        tip.textContent = "";
        [new Date(u.data[0][at] * 1000).toLocaleTimeString(), ...lines].forEach((line) => { const row = document.createElement("div"); row.textContent = line; tip.appendChild(row); });
        tip.hidden = false;
        const left = u.cursor.left + 14 + tip.offsetWidth > u.over.clientWidth ? u.cursor.left - tip.offsetWidth - 14 : u.cursor.left + 14;
        tip.style.left = Math.max(0, left) + "px";
        tip.style.top = "6px";
      }],
    } };
  }

  function decades(u, axis, low, high) {
    const found = [];
    for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.log10(high) + 1e-9; power += 1) found.push(Math.pow(10, power));
    return found;
  }

  function axes(format, logarithmic) {
    const common = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "11px system-ui, sans-serif" };
    return [{ ...common, grid: { show: false }, space: 70 }, { ...common, size: 62, ...(logarithmic ? { splits: decades, filter: (u, splits) => splits } : {}), values: (u, values) => values.map((v) => v === null ? "" : format(v)) }];
  }

  function draw() {
    plots.forEach((plot) => plot.destroy());
    plots = [];
    const { found, times, rate, evidence } = series();
    const empty = found.length === 0;
    nothing.hidden = !empty;
    root.hidden = empty;
    if (empty) return;
    const format = formats[select.value];
    const build = (name, data, scale, lines, names, show) => {
      const box = root.querySelector("[data-plot=" + name + "]");
      const span = times[times.length - 1] - times[0];
      const options = {
        width: box.clientWidth, height: box.clientHeight, legend: { show: false },
        cursor: { y: false, points: { size: 6 } },
        scales: { x: { time: true, range: span > 0 ? undefined : (u, low, high) => [low - 30, high + 30] }, y: scale },
        axes: axes(show, scale.distr === 3), series: [{}, ...lines], plugins: [stepsPlugin(found), tipPlugin(names, show)],
      };
      plots.push(new uPlot(options, data, box));
    };
    const line = (name, more) => ({ stroke: colour(name), width: 2, points: { show: times.length < 12, size: 5 }, spanGaps: true, ...more });
    build("rate", rate, { range: (u, low, high) => [0, Math.max(high || 0, select.value === "latency" ? 10 : select.value === "cost" ? 1e-6 : 0.02) * 1.15] },
      [line("--series-candidate"), line("--series-stable")], ["candidate", "stable"], format);
    build("evidence", evidence, { distr: 3, range: (u, low, high) => [Math.min(0.1, Math.pow(10, Math.floor(Math.log10(low || 0.1)))), Math.pow(10, Math.ceil(Math.log10((high || 1) * 1.5)))] },
      [line("--series-candidate"), line("--series-limit", { dash: [6, 4], width: 1.5, points: { show: false } })], ["e-value", "aborts at"], significant);
  }

  // Begin with what speaks most against the candidate.
  function chooseMetric(metrics) {
    const weighed = metrics.filter((each) => formats[each.name] && each.threshold > 0);
    weighed.sort((a, b) => b.e_value / b.threshold - a.e_value / a.threshold);
    if (weighed.length) select.value = weighed[0].name;
  }

  let loading = false;
  async function load() {
    if (loading) return;
    loading = true;
    try {
      const after = rows.length ? rows[rows.length - 1].id : 0;
      const answer = await fetch("/api/v1/rollouts/" + encodeURIComponent(id) + "/measurements?limit=5000&after=" + after);
      if (!answer.ok) return;
      const fresh = await answer.json();
      if (!rows.length && fresh.length) chooseMetric(fresh[fresh.length - 1].metrics || []);
      if (fresh.length || !plots.length) { rows = rows.concat(fresh); draw(); }
    } catch (error) {
      // The stream's light says that the server is away; the chart keeps what it has.
    } finally { loading = false; }
  }

  select.addEventListener("change", draw);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  let resizing;
  new ResizeObserver(() => { clearTimeout(resizing); resizing = setTimeout(draw, 150); }).observe(root);
  document.addEventListener("meta-agent:event", (event) => {
    if (event.detail.subject !== id) return;
    if (["rollout.promoted", "rollout.rolled_back", "rollout.aborted"].includes(event.detail.kind)) final = true;
    load();
  });
  setInterval(() => { if (!final && !document.hidden) load(); }, 3000);
  load();
})();
