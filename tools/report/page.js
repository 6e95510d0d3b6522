"use strict";
// The gallery: sorts, filters and enlarges what the page holds. Without this script every row stays in the order of the table.
(() => {
  const gallery = document.getElementById("gallery");
  if (!gallery) return;
  const controls = document.getElementById("controls");
  const list = document.getElementById("rows");
  const more = document.getElementById("more");
  const [models, metrics, sd] = ["models", "metrics", "sd"].map((name) => JSON.parse(gallery.dataset[name]));
  const control = (name) => controls.elements[name];
  const value = (name) => control(name)?.value ?? "";
  const STEP = 24;
  let limit = STEP;

  // Fills the controls, and removes those that have nothing to choose from.
  const fill = (name, options) => control(name).append(...options.map(([value, text]) => new Option(text, value)));
  const distinct = (values) => [...new Set(values)];
  const each = (prefix, words) => metrics.map((metric, m) => [prefix + m, `${words} ${metric}`]);
  const ks = distinct([...list.querySelectorAll("figure")].map((figure) => figure.dataset.k)).sort((p, q) => p - q);
  const sets = distinct([...list.children].map((row) => row.dataset.set)).filter((set) => set);
  const some = { seeds: ks.length > 1, scores: metrics.length > 0 && models.length > 1, sets: sets.length > 1 };
  const splits = (words) => (metrics.length > 1 ? [["split", words]] : []);
  fill("image", [...ks.map((k) => [k, k]), ...each("best-", "best by")]);
  for (const name of ["a", "b"]) fill(name, [...models.entries()]);
  fill("sort", [...each("", "gain in"), ...splits("disagreement of the metrics")]);
  fill("set", sets.map((set) => [set, set]));
  fill("agree", splits("the metrics disagree"));
  control("image").value = gallery.dataset.k;
  controls.querySelectorAll("[data-for]").forEach((part) => some[part.dataset.for] || part.remove());

  const rows = [...list.children].map((node, order) => ({
    node,
    order,
    words: node.querySelector("h3").textContent.toLowerCase(),
    best: JSON.parse(node.dataset.best ?? "null"),
  }));

  // What model a gains over model b, one number per metric; null where one of them has no score.
  const gainsOf = (row) =>
    metrics.map((_, m) => {
      const [a, b] = [value("a"), value("b")].map((t) => row.best?.[t]?.[m] ?? null);
      return a === null || b === null ? null : a - b;
    });
  const known = (row) => row.gains.filter((gain) => gain !== null);
  const split = (row) => {
    const [up, down] = [known(row).filter((g) => g > 0).length, known(row).filter((g) => g < 0).length];
    return Math.min(up, down);
  };
  const measures = {
    mean: (row) => {
      const each = row.gains.map((g, m) => (g === null || !sd[m] ? null : g / sd[m])).filter((g) => g !== null);
      return each.length ? each.reduce((sum, g) => sum + g, 0) / each.length : null;
    },
    split: (row) => split(row) * 1e6 + Math.abs(Math.max(...known(row), 0) - Math.min(...known(row), 0)),
  };
  const measure = (row) => {
    const by = value("sort");
    return by in measures ? measures[by](row) : row.gains[by];
  };
  const verdicts = {
    better: (row) => known(row).length > 0 && known(row).every((g) => g > 0),
    worse: (row) => known(row).length > 0 && known(row).every((g) => g < 0),
    split: (row) => split(row) > 0,
  };
  const wanted = (row) =>
    (!value("set") || row.node.dataset.set === value("set")) &&
    (!value("agree") || verdicts[value("agree")](row)) &&
    row.words.includes(value("find").trim().toLowerCase());

  const digits = (m) => (sd[m] > 0 ? Math.min(6, Math.max(1, 2 - Math.floor(Math.log10(sd[m])))) : 4);
  const span = (text, kind) => Object.assign(document.createElement("span"), { textContent: text, className: kind });
  const chips = (row) => {
    const gains = row.node.querySelector(".gains");
    if (!control("a") || value("a") === value("b")) return gains.replaceChildren();
    const each = row.gains.map((g, m) => {
      const size = Math.abs(g ?? 0).toFixed(digits(m));
      const words = g === null ? "–" : (Number(size) === 0 ? "±" : g < 0 ? "−" : "+") + size;
      return span(`${metrics[m]} ${words}`, g > 0 ? "up" : g < 0 ? "down" : "");
    });
    gains.replaceChildren(span(`${models[value("a")]} − ${models[value("b")]}, best of all images`, "of"), ...each);
  };

  // Marks the image of each column that is shown while models stand side by side.
  const choose = (row) => {
    const image = value("image");
    for (const column of row.node.querySelectorAll(".strip")) {
      const figures = [...column.children];
      const score = (figure) => {
        const cell = figure.querySelectorAll("dd")[image.slice(5)]?.querySelector("data");
        return cell ? Number(cell.value) : -Infinity;
      };
      const pick = image.startsWith("best-")
        ? figures.reduce((best, figure) => (score(figure) > score(best) ? figure : best))
        : figures.find((figure) => figure.dataset.k === image) ?? figures.find((f) => f.classList.contains("shown"));
      figures.forEach((figure) => figure.classList.toggle("shown", figure === pick));
    }
  };

  let visible = [];
  const update = () => {
    gallery.dataset.view = value("view") || "models";
    // Images of different numbers are not compared with each other.
    gallery.classList.toggle("mixed", gallery.dataset.view === "models" && value("image").startsWith("best-"));
    rows.forEach((row) => (row.gains = gainsOf(row)));
    visible = rows.filter(wanted);
    if (value("sort") && value("sort") !== "order") {
      const sign = control("least").checked ? 1 : -1;
      const far = (x) => (x === null ? Infinity : sign * x);
      visible.sort((p, q) => far(measure(p)) - far(measure(q)) || p.order - q.order);
    }
    rows.forEach((row) => (row.node.hidden = true));
    const shown = visible.slice(0, limit);
    shown.forEach((row) => ((row.node.hidden = false), chips(row)));
    list.append(...visible.map((row) => row.node));
    const all = visible.length === rows.length ? "" : ` that match, of ${rows.length}`;
    document.getElementById("count").textContent =
      `${shown.length} of ${visible.length} prompt${visible.length === 1 ? "" : "s"}${all}`;
    more.hidden = shown.length === visible.length;
    more.textContent = `Show ${Math.min(STEP, visible.length - shown.length)} more`;
  };

  // Shows one row larger, in a dialog.
  const dialog = document.getElementById("large");
  let current = 0;
  const show = (at) => {
    if (at < 0 || at >= visible.length) return;
    current = at;
    const row = visible[at].node.cloneNode(true);
    row.querySelector("button")?.remove();
    const stage = document.getElementById("stage");
    stage.replaceChildren(...row.children);
    stage.dataset.view = gallery.dataset.view;
    stage.className = gallery.className;
    stage.style.cssText = gallery.style.cssText;
    stage.style.removeProperty("--cell");
    document.getElementById("earlier").disabled = at === 0;
    document.getElementById("later").disabled = at === visible.length - 1;
    if (!dialog.open) dialog.showModal();
  };
  document.getElementById("earlier").onclick = () => show(current - 1);
  document.getElementById("later").onclick = () => show(current + 1);
  document.getElementById("shut").onclick = () => dialog.close();
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") show(current - 1);
    if (event.key === "ArrowRight") show(current + 1);
  });
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  list.addEventListener("click", (event) => {
    if (!event.target.matches("img, button")) return;
    show(visible.findIndex((row) => row.node.contains(event.target)));
  });
  rows.forEach((row) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: "Enlarge" });
    button.setAttribute("aria-label", `Enlarge: ${row.node.querySelector("h3").textContent}`);
    row.node.querySelector("header").append(button);
  });

  if (control("a")) {
    const base = gallery.dataset.base ?? 0;
    control("b").value = base;
    control("a").value = models.length - 1 === Number(base) ? 0 : models.length - 1;
  }
  const size = control("size");
  size.value = parseFloat(getComputedStyle(gallery).getPropertyValue("--cell")) * 16;
  size.oninput = () => gallery.style.setProperty("--cell", `${size.value}px`);
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", (event) => {
    if (event.target === size) return;
    limit = STEP;
    if (event.target.name === "image") rows.forEach(choose);
    update();
  });
  more.onclick = () => ((limit += STEP), update());
  // Shows more as one scrolls; the button is for the keyboard.
  new IntersectionObserver((seen) => seen.some((entry) => entry.isIntersecting) && more.click()).observe(more);
  controls.hidden = false;
  update();
})();
