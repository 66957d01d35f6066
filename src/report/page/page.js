"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const SVG = byId("front").namespaceURI;

// Text only ever becomes text nodes and attributes, never markup.
function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name === "on") for (const [event, act] of Object.entries(value)) node.addEventListener(event, act);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
const el = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);
const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

const rows = data.rows;
const minus = (text) => text.replace("-", "−");
function thousandths(error) {
  const value = 1e3 * error;
  if (value === 0) return "0";
  return minus(Math.abs(value) < 0.1 ? value.toFixed(4) : value.toFixed(2));
}
function estimate(mean, error) {
  if (mean === 0) return "0";
  return thousandths(mean) + (error === null || error === undefined ? "" : " ± " + thousandths(error));
}
function spread(middle, low, high, decimals) {
  const text = middle.toFixed(decimals);
  return low < high ? `${text} (${low.toFixed(decimals)}–${high.toFixed(decimals)})` : text;
}
const isCertain = (row) =>
  row.rival_difference_standard_error !== null && Math.abs(row.rival_difference) > 2 * row.rival_difference_standard_error;

const policies = [...new Set(rows.filter((row) => row.kind !== "uncached").map((row) => row.policy))];
// Runs of fewer steps are what everything else is measured by: grey.
const coloured = policies.filter((policy) => rows.some((row) => row.policy === policy && row.kind !== "fewer steps"));
const colour = (row) => {
  const number = coloured.indexOf(row.policy);
  return number < 0 ? "var(--soft)" : `var(--s${number % 8})`;
};
// Of a file its name, without the folders.
const short = (row) => (row.schedule.endsWith(".json") ? row.schedule.split(/[\\/]/).pop() : row.schedule);
const SHAPES = [
  "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
  "M-4.5-4.5h9v9h-9z",
  "M0-6l5.5 10h-11z",
  "M0-6.2L6.2 0 0 6.2-6.2 0z",
  "M0 6l5.5-10h-11z",
  "M-2-6h4v4h4v4h-4v4h-4v-4h-4v-4h4z",
  "M-6-3h12v6h-12z",
];
// Shapes and colours repeat at different numbers, so that together they tell more policies apart.
const shape = (row) => SHAPES[Math.max(0, policies.indexOf(row.policy)) % SHAPES.length];

// ---- facts and verdict
byId("facts").append(...data.facts.map(([name, value]) => el("div", null, el("dt", null, name), el("dd", null, value))));
{
  const lines = data.verdict.filter((line) => line.startsWith("at "));
  const best = data.verdict.find((line) => !line.startsWith("at "));
  if (best) byId("best").append(best.charAt(0).toUpperCase() + best.slice(1) + ".");
  byId("duels").append(
    ...lines.map((line) => {
      const cut = line.lastIndexOf(" (MSE × 1000");
      const [said, figures] = cut < 0 ? [line, ""] : [line.slice(0, cut), line.slice(cut + 2, -1)];
      const kind = said.includes(" reuse beats fewer steps:") ? "win" : said.includes(" fewer steps beat reuse:") ? "loss" : null;
      return el("li", { class: kind }, said.charAt(0).toUpperCase() + said.slice(1), figures ? el("small", null, figures) : null);
    }),
  );
  byId("warnings").append(...rows.flatMap((row) => row.warnings).map((text) => el("li", null, "⚠ " + text)));
}

// ---- table
const columns = [
  { title: "schedule", of: (r) => r.schedule, text: (r) => r.schedule },
  { title: "front", of: (r) => (r.on_front ? 0 : 1), text: (r) => (r.on_front ? "●" : "") },
  { title: "MACs ratio", of: (r) => r.macs_ratio, text: (r) => r.macs_ratio.toFixed(2) },
  { title: "speed-up", of: (r) => r.speedup, text: (r) => spread(r.speedup, r.speedup_min, r.speedup_max, 2) },
  { title: "MSE ×1000", of: (r) => r.mse, text: (r) => estimate(r.mse, r.mse_standard_error) },
  {
    title: "against the best rival",
    of: (r) => r.rival_difference,
    cell: (r) => {
      if (r.rival === null) return ["–"];
      const sign = r.rival_difference > 0 ? "+" : "";
      const text = sign + estimate(r.rival_difference, r.rival_difference_standard_error);
      const kind = !isCertain(r) ? null : r.rival_difference < 0 ? "good" : "bad";
      return [el("span", { class: kind }, text), " ", el("small", null, r.rival)];
    },
  },
  { title: "median", of: (r) => r.mse_median, text: (r) => (r.mse ? thousandths(r.mse_median) : "–") },
  { title: "worst", of: (r) => r.mse_max, text: (r) => (r.mse ? thousandths(r.mse_max) : "–") },
  { title: "PSNR dB", of: (r) => r.psnr, text: (r) => (r.psnr === null ? "–" : r.psnr.toFixed(2)) },
  { title: "SSIM", of: (r) => r.ssim, text: (r) => r.ssim.toFixed(4) },
  { title: "to the true solution", of: (r) => r.mse_true, text: (r) => estimate(r.mse_true, r.mse_true_standard_error) },
  { title: "CUR %", of: (r) => r.cur, text: (r) => (100 * r.cur).toFixed(1) },
  { title: "steps", of: (r) => r.steps, text: (r) => String(r.steps) },
  { title: "efficiency", of: (r) => r.efficiency, text: (r) => r.efficiency.toFixed(2) },
  { title: "seconds", of: (r) => r.median_s, text: (r) => spread(r.median_s, r.min_s, r.max_s, 3) },
  { title: "cache MB", of: (r) => r.peak_cache_bytes, text: (r) => (r.peak_cache_bytes / 1e6).toFixed(1) },
  { title: "host MB", of: (r) => r.peak_host_bytes, text: (r) => (r.peak_host_bytes / 1e6).toFixed(0) },
].filter((column) => rows.some((row) => column.of(row) !== null && column.of(row) !== undefined));

const lines = new Map(
  rows.map((row) => {
    const cells = columns.map((column, i) => {
      if (i > 0) return el("td", null, ...(column.cell ? column.cell(row) : [column.text(row)]));
      const dot = el("span", { class: "swatch", style: `background:${colour(row)}`, "aria-hidden": "true" });
      const warning = row.warnings.join("; ");
      const mark = warning ? el("span", { class: "warn", title: warning, role: "img", "aria-label": "Warning: " + warning }, "⚠") : null;
      return el("th", { scope: "row", title: row.schedule }, dot, short(row), mark);
    });
    return [row, el("tr", null, ...cells)];
  }),
);
{
  const body = el("tbody", null, ...lines.values());
  let sorted = [null, 1];
  const heads = columns.map((column) => {
    const head = el("th", { scope: "col" }, el("button", { type: "button", on: { click: () => sort(column, head) } }, column.title));
    return head;
  });
  function sort(column, head) {
    const way = sorted[0] === column ? -sorted[1] : 1;
    sorted = [column, way];
    const known = (row) => column.of(row) !== null && column.of(row) !== undefined;
    const order = [...rows].sort((a, b) => {
      if (!known(a) || !known(b)) return known(b) - known(a);
      const [x, y] = [column.of(a), column.of(b)];
      return way * (typeof x === "string" ? x.localeCompare(y, undefined, { numeric: true }) : x - y);
    });
    body.append(...order.map((row) => lines.get(row)));
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", way > 0 ? "ascending" : "descending");
  }
  byId("table").append(el("thead", null, el("tr", null, ...heads)), body);
}

// ---- front
const plotted = rows.filter((row) => row.kind !== "uncached" && row.mse > 0);
function drawFront() {
  const chart = byId("front");
  const width = Math.max(300, byId("plot").clientWidth);
  const height = Math.round(Math.min(520, Math.max(340, width * 0.55)));
  const room = { left: 62, right: 18, top: 18, bottom: 46 };
  chart.replaceChildren();
  chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
  chart.setAttribute("height", height);
  if (!plotted.length) {
    chart.append(svg("text", { x: width / 2, y: height / 2, "text-anchor": "middle" }, "no row differs from the uncached run"));
    return;
  }
  const floor = Math.min(...plotted.map((row) => row.mse)) / 1.8;
  const ceiling = Math.max(...plotted.map((row) => row.mse)) * 1.8;
  const most = Math.max(1.05, ...plotted.map((row) => row.macs_ratio));
  const least = Math.min(1, ...plotted.map((row) => row.macs_ratio));
  const far = most + 0.06 * (most - least);
  const [low, high] = [Math.log10(floor), Math.log10(ceiling)];
  const x = (ratio) => room.left + ((ratio - least) / (far - least)) * (width - room.left - room.right);
  const y = (error) => {
    const clamped = Math.log10(Math.min(ceiling, Math.max(floor, error)));
    return room.top + ((high - clamped) / (high - low)) * (height - room.top - room.bottom);
  };
  // Ticks: decades, with their halves and fifths where there are few.
  const steps = high - low < 1.3 ? [1, 2, 3, 5, 7] : high - low < 3.5 ? [1, 2, 5] : [1];
  for (let decade = Math.floor(low); decade <= Math.ceil(high); decade += 1) {
    for (const step of steps) {
      const value = step * 10 ** decade;
      if (value < floor || value > ceiling) continue;
      const at = y(value);
      const text = (1e3 * value).toPrecision(1);
      chart.append(
        svg("line", { class: "grid", x1: room.left, x2: width - room.right, y1: at, y2: at }),
        svg("text", { x: room.left - 8, y: at + 4, "text-anchor": "end" }, String(Number(text))),
      );
    }
  }
  const wish = (far - least) / Math.max(3, width / 110);
  const unit = [0.05, 0.1, 0.2, 0.25, 0.5, 1, 2, 5, 10, 20, 50].find((step) => step >= wish) || 100;
  for (let tick = Math.ceil(least / unit - 1e-9); tick * unit <= far; tick += 1) {
    const at = x(tick * unit);
    chart.append(
      svg("line", { class: "grid", x1: at, x2: at, y1: room.top, y2: height - room.bottom }),
      svg("text", { x: at, y: height - room.bottom + 17, "text-anchor": "middle" }, String(Number((tick * unit).toFixed(2)))),
    );
  }
  const middle = (height - room.bottom + room.top) / 2;
  chart.append(
    svg("text", { x: (width + room.left - room.right) / 2, y: height - 9, "text-anchor": "middle" }, "MACs ratio (×)"),
    svg("text", { "text-anchor": "middle", transform: `translate(15 ${middle}) rotate(-90)` }, "MSE × 1000"),
  );
  const path = (group) => group.map((row, i) => `${i ? "L" : "M"}${x(row.macs_ratio).toFixed(1)} ${y(row.mse).toFixed(1)}`).join("");
  const ordered = [...plotted].sort((a, b) => a.macs_ratio - b.macs_ratio);
  for (const policy of policies) {
    const own = ordered.filter((row) => row.policy === policy);
    if (own.length > 1) chart.append(svg("path", { class: "join", d: path(own), style: `stroke:${colour(own[0])}` }));
  }
  chart.append(svg("path", { class: "best", d: path(ordered.filter((row) => row.on_front)) }));
  for (const row of ordered) {
    const error = row.mse_standard_error;
    if (!error) continue;
    const at = x(row.macs_ratio);
    const ends = { x1: at, x2: at, y1: y(row.mse + error), y2: y(row.mse - error) };
    chart.append(svg("line", { class: "whisker", ...ends, style: `stroke:${colour(row)}` }));
  }
  placeLabels(chart, ordered, x, y, { left: room.left, right: width - 4, top: 2, bottom: height - room.bottom });
  for (const row of ordered) {
    const at = `translate(${x(row.macs_ratio).toFixed(1)} ${y(row.mse).toFixed(1)})`;
    const said = `${row.schedule}: MSE × 1000 ${estimate(row.mse, row.mse_standard_error)}, MACs ratio ${row.macs_ratio.toFixed(2)}${row.on_front ? ", on the front" : ""}`;
    const show = () => showTip(row, x(row.macs_ratio), y(row.mse), width);
    const events = { pointerenter: show, focus: show, click: show, pointerleave: hideTip, blur: hideTip };
    chart.append(
      svg("g", { class: "point", transform: at, tabindex: "0", role: "img", "aria-label": said, on: events },
        svg("circle", { class: "halo", r: 11 }),
        row.on_front ? svg("circle", { class: "ring", r: 9 }) : null,
        svg("path", { d: shape(row), style: `fill:${colour(row)};stroke:var(--panel);stroke-width:1.2` })),
    );
  }
}
// Names beside their points, the front's first; one that would cover another name or a point stays away.
function placeLabels(chart, ordered, x, y, bounds) {
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = getComputedStyle(chart).font || "12px sans-serif";
  const taken = ordered.map((row) => {
    const [px, py] = [x(row.macs_ratio), y(row.mse)];
    const half = row.on_front ? 10 : 8;
    return [px - half, py - half, px + half, py + half];
  });
  const meets = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];
  const first = [...ordered].sort((a, b) => b.on_front - a.on_front || a.mse - b.mse);
  for (const row of first) {
    const name = short(row).length > 28 ? short(row).slice(0, 27) + "…" : short(row);
    const [px, py, wide, tall] = [x(row.macs_ratio), y(row.mse), pen.measureText(name).width + 4, 15];
    const off = row.on_front ? 12 : 9;
    const places = [
      [px + off, py - 7], [px + 8, py + off - 3], [px + 8, py - off - 11], [px - off - wide, py - 7],
      [px - 8 - wide, py + off - 3], [px - 8 - wide, py - off - 11], [px - wide / 2, py + off + 1], [px - wide / 2, py - off - 16],
    ];
    const box = places
      .map(([left, top]) => [left, top, left + wide, top + tall])
      .find((box) =>
        box[0] >= bounds.left && box[2] <= bounds.right && box[1] >= bounds.top && box[3] <= bounds.bottom &&
        !taken.some((other) => meets(box, other)));
    if (!box) continue;
    taken.push(box);
    chart.append(svg("text", { class: "label", x: box[0] + 2, y: box[3] - 3.5, "aria-hidden": "true" }, name));
  }
}
function showTip(row, px, py, width) {
  const tip = byId("tip");
  const facts = [
    `MSE × 1000: ${estimate(row.mse, row.mse_standard_error)}`,
    `MACs ratio ${row.macs_ratio.toFixed(2)}×, on the clock ${spread(row.speedup, row.speedup_min, row.speedup_max, 2)}×`,
    `PSNR ${row.psnr === null ? "–" : row.psnr.toFixed(1) + " dB"}, SSIM ${row.ssim.toFixed(4)}`,
    row.on_front ? "on the front" : null,
  ];
  tip.replaceChildren(el("b", null, row.schedule), ...facts.filter(Boolean).map((fact) => el("div", null, fact)));
  tip.hidden = false;
  const chart = byId("front").getBoundingClientRect();
  const scale = chart.width / width;
  const left = px * scale + 16 + tip.offsetWidth > chart.width ? px * scale - 16 - tip.offsetWidth : px * scale + 16;
  tip.style.left = `${Math.max(4, Math.min(left, chart.width - tip.offsetWidth - 4))}px`;
  tip.style.top = `${Math.max(4, Math.min(py * scale + 14, chart.height - tip.offsetHeight - 4))}px`;
  for (const [other, line] of lines) line.classList.toggle("marked", other === row);
}
function hideTip() {
  byId("tip").hidden = true;
  for (const line of lines.values()) line.classList.remove("marked");
}
byId("legend").append(
  ...policies
    .map((policy) => rows.find((row) => row.policy === policy && plotted.includes(row)))
    .filter(Boolean)
    .map((row) => {
      const mark = svg("path", { d: shape(row), style: `fill:${colour(row)}` });
      return el("li", null, svg("svg", { viewBox: "-8 -8 16 16", "aria-hidden": "true" }, mark), row.policy);
    }),
);
let drawnWidth = 0;
new ResizeObserver(() => {
  const width = byId("plot").clientWidth;
  if (width === drawnWidth) return;
  drawnWidth = width;
  requestAnimationFrame(() => {
    hideTip();
    drawFront();
  });
}).observe(byId("plot"));

// ---- pictures
const count = data.captions.length;
const loaded = new Map();
function picture(source) {
  if (!loaded.has(source)) {
    const image = new Image();
    image.src = source;
    loaded.set(source, image.decode().then(() => image));
  }
  return loaded.get(source);
}
function pixels(image) {
  const canvas = el("canvas", { width: image.naturalWidth, height: image.naturalHeight });
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.drawImage(image, 0, 0);
  return pen.getImageData(0, 0, canvas.width, canvas.height);
}
const gain = () => Number(byId("gain").value);
// Paints a picture of a row, or how far it is from the uncached one.
async function paint(canvas, row, number, difference) {
  const wanted = (canvas.wanted = {});
  const images = await Promise.all([row, rows[0]].map((of) => picture(of.pictures[number])));
  if (canvas.wanted !== wanted) return;
  const [own, uncached] = images.map(pixels);
  if (difference) {
    for (let i = 0; i < own.data.length; i += 1) {
      if (i % 4 !== 3) own.data[i] = Math.min(255, gain() * Math.abs(own.data[i] - uncached.data[i]));
    }
  }
  canvas.width = own.width;
  canvas.height = own.height;
  canvas.classList.toggle("pixelated", own.width < 200);
  canvas.getContext("2d").putImageData(own, 0, 0);
}
const described = (row, number, difference) =>
  `${data.captions[number]}, ${row.schedule}${difference ? ": difference to the uncached picture" : ""}`;
if (count === 0) byId("pictures-section").hidden = true;
else {
  byId("pictures-hint").textContent =
    `The first ${count === 1 ? "image" : count + " images"} of each schedule, from the same noise` +
    (data.preview ? "; a rough preview of latents, not decoded images" : "") +
    ". Hover to magnify, select to see it beside the uncached one.";
  const cells = [];
  const lines = rows.map((row, line) => {
    const shown = data.captions.map((_, number) => {
      const canvas = el("canvas", { role: "img" });
      const events = {
        click: () => open(line, number),
        pointerenter: (event) => event.pointerType === "mouse" && magnify(event.currentTarget, row, number),
        pointerleave: hideLoupe,
      };
      cells.push({ canvas, row, number });
      return el("td", null, el("button", { type: "button", on: events }, canvas));
    });
    const psnr = row.psnr === null ? null : el("small", null, `${row.macs_ratio.toFixed(2)}×, ${row.psnr.toFixed(1)} dB`);
    return el("tr", null, el("th", { scope: "row", title: row.schedule }, short(row), psnr), ...shown);
  });
  const captions = data.captions.map((caption) => el("th", { scope: "col", title: caption }, caption));
  byId("pictures").append(el("thead", null, el("tr", null, el("td", null), ...captions)), el("tbody", null, ...lines));
  const toggle = byId("differences");
  const differs = () => toggle.getAttribute("aria-pressed") === "true";
  const repaint = () => {
    for (const { canvas, row, number } of cells) {
      canvas.setAttribute("aria-label", described(row, number, differs()));
      paint(canvas, row, number, differs());
    }
  };
  toggle.addEventListener("click", () => {
    toggle.setAttribute("aria-pressed", String(!differs()));
    repaint();
  });
  byId("gain").addEventListener("change", repaint);
  repaint();

  const loupe = byId("loupe");
  function magnify(button, row, number) {
    const place = button.getBoundingClientRect();
    const side = 270;
    const left = place.right + 10 + side > innerWidth ? place.left - side - 10 : place.right + 10;
    loupe.style.left = `${Math.max(4, left)}px`;
    loupe.style.top = `${Math.max(4, Math.min(place.top - 80, innerHeight - side - 10))}px`;
    loupe.hidden = false;
    paint(loupe.firstChild, row, number, differs());
  }
  function hideLoupe() {
    loupe.hidden = true;
  }

  const viewer = byId("viewer");
  let at = [0, 0];
  function show() {
    const [line, number] = at;
    const row = rows[line];
    byId("viewer-title").textContent = `${data.captions[number]}: ${row.schedule}`;
    byId("viewer-own").textContent = row.schedule;
    byId("viewer-difference").textContent = `difference, amplified ${gain()}×`;
    for (const canvas of viewer.querySelectorAll("canvas")) {
      const of = canvas.dataset.of === "uncached" ? rows[0] : row;
      const difference = canvas.dataset.of === "difference";
      canvas.setAttribute("aria-label", described(of, number, difference));
      paint(canvas, of, number, difference);
    }
  }
  function open(line, number) {
    at = [line, number];
    hideLoupe();
    show();
    viewer.showModal();
  }
  const move = (lines, pictures) => {
    at = [(at[0] + lines + rows.length) % rows.length, (at[1] + pictures + count) % count];
    show();
  };
  const moves = { previous: [0, -1], next: [0, 1], above: [-1, 0], below: [1, 0] };
  for (const [id, way] of Object.entries(moves)) byId(id).addEventListener("click", () => move(...way));
  const keys = { ArrowLeft: "previous", ArrowRight: "next", ArrowUp: "above", ArrowDown: "below" };
  viewer.addEventListener("keydown", (event) => {
    if (!keys[event.key]) return;
    event.preventDefault();
    move(...moves[keys[event.key]]);
  });
  viewer.addEventListener("click", (event) => event.target === viewer && viewer.close());
}

// ---- schedules
const kinds = [...new Set(data.sites.map(([kind]) => kind))];
function heatMap(row) {
  const sites = kinds.map((kind) => data.sites.flatMap(([own, block], n) => (own === kind ? [[n, block]] : [])));
  const steps = row.map.rows ? row.map.rows.length : row.map.reused.length;
  const [left, top, bottom, gap, width] = [26, 16, 16, 10, 320];
  const total = sites.reduce((sum, group) => sum + group.length, 0);
  const wide = (width - left - gap * (kinds.length - 1)) / total;
  const tall = Math.max(2, Math.min(9, 180 / steps));
  const seam = Math.min(wide, tall) < 4 ? 0 : Math.min(0.8, wide / 6, tall / 6);
  const height = top + steps * tall + bottom;
  const said = `${row.schedule}: ${(100 * row.cur).toFixed(1)} % of the branch evaluations are not computed`;
  const chart = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said });
  const paths = { computed: "", reused: "", forecast: "" };
  const shares = [];
  let start = left;
  kinds.forEach((kind, k) => {
    sites[k].forEach(([n], column) => {
      for (let s = 0; s < steps; s += 1) {
        const [px, py] = [start + column * wide + seam / 2, top + s * tall + seam / 2];
        const [w, h] = [wide - seam, tall - seam];
        const box = `M${px.toFixed(2)} ${py.toFixed(2)}h${w.toFixed(2)}v${h.toFixed(2)}h${(-w).toFixed(2)}z`;
        const mark = row.map.rows ? row.map.rows[s][n] : "#";
        paths[{ "#": "computed", ".": "reused", "~": "forecast" }[mark]] += box;
        const decides = row.map.middle && n >= row.map.middle[0] && n < row.map.middle[1];
        if (decides && row.map.reused[s] > 0) shares.push([box, row.map.reused[s]]);
      }
    });
    const end = start + sites[k].length * wide;
    const last = sites[k].length - 1;
    chart.append(
      svg("text", { x: (start + end) / 2, y: top - 5, "text-anchor": "middle" }, kind),
      svg("text", { x: start, y: height - 4 }, String(sites[k][0][1])),
      last > 0 ? svg("text", { x: end, y: height - 4, "text-anchor": "end" }, String(sites[k][last][1])) : "",
    );
    start = end + gap;
  });
  for (const s of new Set([0, Math.floor((steps - 1) / 2), steps - 1])) {
    chart.append(svg("text", { x: left - 5, y: top + (s + 0.5) * tall + 3.5, "text-anchor": "end" }, String(s)));
  }
  for (const [kind, d] of Object.entries(paths)) if (d) chart.append(svg("path", { class: kind, d }));
  for (const [d, share] of shares) chart.append(svg("path", { class: "reused", d, style: `opacity:${share}` }));
  return chart;
}
const mapped = rows.filter((row) => row.kind === "policy" || row.kind === "learned");
if (!mapped.length) byId("maps-section").hidden = true;
byId("maps").append(
  ...mapped.map((row) =>
    el("figure", null,
      el("h3", { title: row.schedule }, short(row)),
      el("p", null, `CUR ${(100 * row.cur).toFixed(1)} %, MACs ratio ${row.macs_ratio.toFixed(2)}×, cache ${(row.peak_cache_bytes / 1e6).toFixed(1)} MB`),
      heatMap(row)),
  ),
);
