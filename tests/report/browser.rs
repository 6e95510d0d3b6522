//! The page in a browser, used as a person uses it: with a mouse, with the keyboard alone, by a screen reader, on a phone, in
//! the dark, on paper, and with thousands of prompts. Headless Chromium is told what to do through two pipes.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

/// A page in Chromium.
struct Browser {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    calls: u64,
    session: Option<String>,
}

impl Browser {
    /// Opens a page at a size in pixels.
    fn open(dir: &Dir, file: &str, (width, height): (u32, u32)) -> Self {
        let found = ["chromium", "chromium-browser", "google-chrome"]
            .into_iter()
            .find(|name| Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success()));
        let chromium = found.expect("Chromium is missing");
        // Chromium reads orders from descriptor 3 and answers through 4, each message with a zero byte at its end.
        let line = format!(
            "exec {chromium} --headless --no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --user-data-dir=\"$1\" \
             --window-size={width},{height} --remote-debugging-pipe about:blank 3<&0 4>&1 0</dev/null 1>&2 2>/dev/null"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line, "sh"]).arg(dir.path("chromium"));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (to, from) = (process.stdin.take().unwrap(), BufReader::new(process.stdout.take().unwrap()));
        let mut browser = Self { process, to, from, calls: 0, session: None };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))["targetId"].clone();
        let session = browser.call("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = session["sessionId"].as_str().map(Into::into);
        browser.call("Page.navigate", json!({ "url": format!("file://{}", dir.path(file).display()) }));
        browser.until("document.readyState === 'complete' && !!document.getElementById('main')");
        browser
    }

    fn call(&mut self, method: &str, params: Value) -> Value {
        self.calls += 1;
        let mut message = json!({ "id": self.calls, "method": method, "params": params });
        if let Some(session) = &self.session {
            message["sessionId"] = session.as_str().into();
        }
        self.to.write_all(message.to_string().as_bytes()).and_then(|()| self.to.write_all(&[0])).unwrap();
        loop {
            let mut bytes = vec![];
            assert!(self.from.read_until(0, &mut bytes).unwrap() > 0, "the browser is gone");
            bytes.pop();
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            if answer["id"] == self.calls {
                assert!(answer.get("error").is_none(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }

    /// The value of an expression in the page.
    fn eval(&mut self, expression: &str) -> Value {
        let params = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", params);
        assert!(answer.get("exceptionDetails").is_none(), "{expression}: {answer}");
        answer["result"]["value"].clone()
    }

    fn words(&mut self, expression: &str) -> String {
        self.eval(expression).as_str().unwrap_or_default().to_owned()
    }

    fn number(&mut self, expression: &str) -> f64 {
        self.eval(expression).as_f64().unwrap()
    }

    fn until(&mut self, condition: &str) {
        let begin = Instant::now();
        while self.eval(condition) != true {
            assert!(begin.elapsed() < Duration::from_secs(60), "never: {condition}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Presses a key: its name, its code, and the text that it types, if any.
    fn key(&mut self, key: &str, code: u32, text: Option<&str>) {
        for kind in ["keyDown", "keyUp"] {
            let text = text.filter(|_| kind == "keyDown");
            let event = json!({ "type": kind, "key": key, "code": key, "windowsVirtualKeyCode": code, "text": text });
            let event: serde_json::Map<_, _> =
                event.as_object().unwrap().clone().into_iter().filter(|(_, v)| !v.is_null()).collect();
            self.call("Input.dispatchKeyEvent", event.into());
        }
    }

    fn tab(&mut self) {
        self.key("Tab", 9, None);
    }

    fn enter(&mut self) {
        self.key("Enter", 13, Some("\r"));
    }

    /// Presses Tab until the focus is on what `selector` names, with a visible frame around each stop.
    fn tab_to(&mut self, selector: &str) {
        for _ in 0..200 {
            self.tab();
            let outline = "getComputedStyle(document.activeElement).outlineStyle";
            assert_ne!(self.words(outline), "none", "the focus is not seen on its way to {selector}");
            if self.eval(&format!("document.activeElement.matches({})", json!(selector))) == true {
                return;
            }
        }
        panic!("the keyboard does not reach {selector}");
    }

    fn types(&mut self, text: &str) {
        self.call("Input.insertText", json!({ "text": text }));
    }

    /// Clicks in the middle of the first element that `selector` names.
    fn click(&mut self, selector: &str) {
        let at = format!(
            "(() => {{ const e = document.querySelector({}); e.scrollIntoView({{ block: 'center', behavior: 'instant' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()",
            json!(selector)
        );
        let at = self.eval(&at);
        for kind in ["mousePressed", "mouseReleased"] {
            let event = json!({ "type": kind, "x": at[0], "y": at[1], "button": "left", "clickCount": 1 });
            self.call("Input.dispatchMouseEvent", event);
        }
    }

    /// Chooses in a list as the keyboard does: focus, the first option, then down to the option that begins with `option`.
    fn choose(&mut self, list: &str, option: &str) {
        let list = format!("document.getElementById('controls').elements[{}]", json!(list));
        self.eval(&format!("{list}.focus()"));
        self.key("Home", 36, None);
        for _ in 0..self.number(&format!("{list}.options.length")) as usize {
            if self.words(&format!("{list}.selectedOptions[0].textContent")).starts_with(option) {
                return;
            }
            self.key("ArrowDown", 40, None);
        }
        panic!("the keyboard does not reach '{option}'");
    }

    /// The prompts of the rows that are shown, in their order.
    fn rows(&mut self) -> Vec<String> {
        let rows = self.eval("[...document.querySelectorAll('#rows .row:not([hidden]) h3')].map((h) => h.textContent)");
        rows.as_array().unwrap().iter().map(|row| row.as_str().unwrap().to_owned()).collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What BalancedDPO's best image gains over base's, by one metric, for each prompt.
fn gains(dir: &Dir, metric: &str) -> Vec<f32> {
    let best = |model: &str| -> Vec<f32> {
        let all = column_f32(&dir.get(&format!("{model}-scored.parquet")), metric);
        all.chunks(2).map(|pair| pair[0].max(pair[1])).collect()
    };
    best("balanced").iter().zip(best("base")).map(|(a, b)| a - b).collect()
}

#[test]
#[ignore = "needs Chromium"]
fn a_reader_sorts_filters_and_enlarges() {
    let dir = whole_experiment();
    page(&dir, &WHOLE);
    let mut browser = Browser::open(&dir, "r.html", (1200, 900));
    assert_eq!(browser.rows(), (0..N).map(text_of).collect::<Vec<_>>());
    // Sorted by the gain in one metric, then the least first.
    let metric = METRICS[1];
    let (gain, mut order) = (gains(&dir, metric), (0..N).collect::<Vec<_>>());
    order.sort_by(|p, q| gain[*q].total_cmp(&gain[*p]));
    browser.choose("sort", &format!("gain in {metric}"));
    assert_eq!(browser.rows(), order.iter().map(|p| text_of(*p)).collect::<Vec<_>>());
    browser.click("#controls [name=least]");
    order.reverse();
    assert_eq!(browser.rows(), order.iter().map(|p| text_of(*p)).collect::<Vec<_>>());
    // One set, then some words.
    browser.choose("set", "seen");
    assert_eq!(browser.rows().len(), 3);
    assert_eq!(
        browser.words("document.getElementById('count').textContent"),
        format!("3 of 3 prompts that match, of {N}")
    );
    browser.choose("set", "all");
    browser.click("#controls [name=find]");
    browser.types("PROMPT <1>");
    assert_eq!(browser.rows(), [text_of(1)]);
    // All seeds, then one row larger.
    browser.click("#controls [value=seeds]");
    assert_eq!(
        browser
            .number("[...document.querySelectorAll('.row:not([hidden]) figure')].filter((f) => f.offsetParent).length"),
        6.0
    );
    browser.click(".row:not([hidden]) img");
    assert_eq!(browser.words("document.querySelector('#stage h3').textContent"), text_of(1));
    browser.key("Escape", 27, None);
    assert_eq!(browser.eval("document.getElementById('large').open"), false);
}

#[test]
#[ignore = "needs Chromium"]
fn the_keyboard_alone_is_enough() {
    let dir = whole_experiment();
    page(&dir, &WHOLE);
    let mut browser = Browser::open(&dir, "r.html", (1200, 900));
    browser.tab();
    assert_eq!(browser.words("document.activeElement.textContent"), "To the content");
    browser.enter();
    browser.until("location.hash === '#main'");
    browser.tab_to("summary");
    browser.enter();
    assert_eq!(browser.eval("document.activeElement.parentElement.open"), true);
    browser.tab_to("#controls [name=find]");
    browser.types("prompt <2>");
    browser.tab_to(".row:not([hidden]) button");
    browser.enter();
    assert_eq!(browser.eval("document.getElementById('large').open"), true);
    assert_eq!(browser.words("document.activeElement.textContent"), "Close");
    browser.enter();
    assert_eq!(browser.eval("document.getElementById('large').open"), false);
    assert_eq!(browser.eval("document.activeElement.matches('.row button')"), true, "the focus is lost");
    // Left and right turn the pages of the enlarged row.
    browser.eval("(document.getElementById('controls').reset(), document.getElementById('controls').dispatchEvent(new Event('input', { bubbles: true })))");
    browser.eval("document.querySelector('.row button').focus()");
    browser.enter();
    browser.key("ArrowRight", 39, None);
    assert_eq!(browser.words("document.querySelector('#stage h3').textContent"), text_of(1));
}

#[test]
#[ignore = "needs Chromium"]
fn a_screen_reader_finds_a_name_for_everything() {
    let dir = whole_experiment();
    page(&dir, &WHOLE);
    let mut browser = Browser::open(&dir, "r.html", (1200, 900));
    browser.call("Accessibility.enable", json!({}));
    let tree = browser.call("Accessibility.getFullAXTree", json!({}));
    let nodes: Vec<_> = tree["nodes"].as_array().unwrap().iter().filter(|node| node["ignored"] == false).collect();
    let role = |node: &Value| node["role"]["value"].as_str().unwrap_or_default().to_owned();
    let named = [
        "image", "button", "link", "combobox", "checkbox", "radio", "searchbox", "slider", "table", "region", "form",
        "navigation", "heading",
    ];
    let mut seen = HashSet::new();
    for node in nodes.iter().filter(|node| named.contains(&&*role(node))) {
        seen.insert(role(node));
        let name = node["name"]["value"].as_str().unwrap_or_default();
        assert!(!name.trim().is_empty(), "no name: {node}");
    }
    assert_eq!(seen.len(), named.len(), "{seen:?}");
    // Headings go down one step at a time.
    let levels = browser.eval(
        "[...document.querySelectorAll('h1, h2, h3, h4')].filter((h) => h.checkVisibility()).map((h) => +h.tagName[1])",
    );
    let levels: Vec<i64> = levels.as_array().unwrap().iter().map(|level| level.as_i64().unwrap()).collect();
    assert!(levels[0] == 1 && levels.windows(2).all(|two| two[1] <= two[0] + 1), "{levels:?}");
    // What a filter leaves is said aloud.
    let status = nodes.iter().find(|node| role(node) == "status");
    assert!(status.is_some());
}

/// The smallest contrast of a text with the ground below it, and that text: WCAG asks for 4.5.
const CONTRAST: &str = r"(() => {
  const parse = (colour) => { const c = document.createElement('canvas').getContext('2d'); c.fillStyle = colour; c.fillRect(0, 0, 1, 1); return [...c.getImageData(0, 0, 1, 1).data]; };
  const light = ([r, g, b]) => [r, g, b].map((x) => x / 255).map((x) => (x <= 0.03928 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)).reduce((s, x, i) => s + x * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *:not(script):not(style)')) {
    const text = [...e.childNodes].filter((n) => n.nodeType === 3).map((n) => n.textContent.trim()).join('');
    if (!text || !e.checkVisibility() || e.closest('.skip')) continue;
    const style = getComputedStyle(e);
    const [a, b] = [light(parse(e.closest('svg') ? style.fill : style.color)), light(ground(e))];
    const contrast = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (contrast < worst[0]) worst = [contrast, text];
  }
  return worst;
})()";

#[test]
#[ignore = "needs Chromium"]
fn the_page_is_read_in_the_dark_on_a_phone_and_on_paper() {
    let dir = whole_experiment();
    page(&dir, &WHOLE);
    let mut browser = Browser::open(&dir, "r.html", (1200, 900));
    for scheme in ["light", "dark"] {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        browser.call("Emulation.setEmulatedMedia", json!({ "features": features }));
        let ground = browser.words("getComputedStyle(document.body).backgroundColor");
        let first: u32 = ground.split(['(', ',']).nth(1).unwrap().trim().parse().unwrap();
        assert_eq!(first < 60, scheme == "dark", "{ground}");
        let worst = browser.eval(CONTRAST);
        assert!(worst[0].as_f64().unwrap() >= 4.5, "{scheme}: {worst}");
    }
    let phone = json!({ "width": 360, "height": 780, "deviceScaleFactor": 2, "mobile": true });
    browser.call("Emulation.setDeviceMetricsOverride", phone);
    browser.until("innerWidth === 360");
    assert_eq!(browser.number("document.scrollingElement.scrollWidth"), 360.0, "one scrolls sideways");
    browser.call("Emulation.clearDeviceMetricsOverride", json!({}));
    browser.call("Emulation.setEmulatedMedia", json!({ "media": "print" }));
    for hidden in ["nav", "#controls", ".row button"] {
        assert_eq!(
            browser.words(&format!("getComputedStyle(document.querySelector('{hidden}')).display")),
            "none",
            "{hidden}"
        );
    }
    let printed = browser.call("Page.printToPDF", json!({ "printBackground": true }));
    let pdf = STANDARD.decode(printed["data"].as_str().unwrap()).unwrap();
    assert!(pdf.starts_with(b"%PDF") && pdf.len() > 50_000);
}

/// `report`'s flags for the tables of `of_prompts`.
const TABLES: [&str; 8] = [
    "--images", "base.parquet", "policy.parquet", "--scored", "base-scored.parquet", "policy-scored.parquet",
    "--images-in", "folder",
];

/// Images and scores of two models for `n` prompts.
fn of_prompts(n: usize) -> Dir {
    let dir = Dir::new();
    for (i, model) in ["base", "policy"].into_iter().enumerate() {
        let images = drawn(model, 40 * i as u8, n);
        dir.put(&format!("{model}.parquet"), &images);
        dir.put(&format!("{model}-scored.parquet"), &judged(&images, 10 * i as u64, i as f32));
    }
    dir
}

#[test]
#[ignore = "needs Chromium"]
fn thousands_of_prompts_load_as_one_scrolls() {
    const MANY: usize = 2000;
    let dir = of_prompts(MANY);
    dir.tool("report").args(TABLES).args(["-o", "a #1?.html"]).ok();
    std::fs::rename(dir.path("a #1?.html"), dir.path("many.html")).unwrap();
    let mut browser = Browser::open(&dir, "many.html", (1200, 900));
    assert_eq!(browser.number("document.querySelectorAll('#rows .row').length"), MANY as f64);
    let loaded = "[...document.images].filter((i) => i.complete && i.naturalWidth === 16).length";
    browser.until(&format!("{loaded} >= 2"));
    let at_first = browser.number(loaded);
    assert!(at_first < 400.0, "{at_first} images are loaded at once");
    // Scrolling shows more rows and loads their images.
    for _ in 0..3 {
        let before = browser.number("document.querySelectorAll('.row:not([hidden])').length");
        browser.eval("document.getElementById('more').scrollIntoView({ behavior: 'instant' })");
        browser.until(&format!("document.querySelectorAll('.row:not([hidden])').length > {before}"));
    }
    browser.until(&format!("{loaded} > {at_first}"));
    let begin = Instant::now();
    browser.choose("sort", "gain in clip");
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
}

/// A page of fewer prompts removes the images that it does not show, and nothing else.
#[test]
fn a_smaller_page_removes_only_images_of_the_page_before() {
    let dir = of_prompts(40);
    dir.tool("report").args(TABLES).args(["-o", "r.html"]).ok();
    let folder = dir.path("r-images");
    let count = || std::fs::read_dir(&folder).unwrap().count();
    let files = count();
    let mine = ["mine.png", "shown-mine.png", "shown-table.parquet"].map(|name| folder.join(name));
    mine.iter().for_each(|path| std::fs::write(path, "a file of the user").unwrap());
    dir.tool("report").args(TABLES).args(["--prompts", "3", "-o", "r.html"]).ok();
    assert!(count() < files && count() <= 3 + 3 * 2 * 2 && mine.iter().all(|path| path.exists()));
}

#[test]
fn images_in_a_folder_need_a_page_that_is_a_file() {
    let dir = two_models();
    let run = |args: &[&str]| dir.tool("report").args(["--images-in", "folder"]).args(args).fails(2);
    says(&run(&["--images", "a.parquet", "-o", "-"]), &["--images-in", "--output"]);
    says(&run(&["--images", "a.parquet", "--sheet", "s.png"]), &["--images-in", "--output"]);
    dir.write("page-images", "a file of the user");
    says(&run(&["--images", "a.parquet", "-o", "page.html"]), &["page-images", "not a folder"]);
    dir.write("log.jsonl", step(1, false));
    says(&run(&["--logs", "log.jsonl", "-o", "r.html"]), &["--images"]);
}
