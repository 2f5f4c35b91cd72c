//! What texts cost that are made to hurt: time and memory, each at the largest size that is read.
//! How: the program runs itself once for each text (`--text NAME`), because it looks at the memory of the whole process; so it
//! has a `main` of its own (`harness = false`). What it prints is a table; arguments are parts of names, as `cargo test` gives them.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::{
    fmt::Write as _,
    fs,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use weft_core::api::{MAX_PIECES, MAX_TEXT, parse_documents};

/// The most that a text may cost: half a second of a CPU, ten times that in a debug build.
const MAX_MICROS: usize = if cfg!(debug_assertions) { 5_000_000 } else { 500_000 };
const MAX_MEMORY: usize = 64 << 20;
/// The longest message about one mistake.
const MAX_MESSAGE: usize = 20_000;
/// The one text here that must be read: 10,000 objects in 3 MiB.
const LEGITIMATE: &str = "ten thousand objects";

const RULES: &str = "apiVersion: weft.dev/v1alpha1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {action: Allow, rules: [{to: [{paths: [";
const HEAD: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: ";

/// `head`, as much of `body` as there is room for, `tail`.
fn filled(head: &str, body: &str, tail: &str) -> String {
    let times = (MAX_TEXT - head.len() - tail.len()) / body.len();
    format!("{head}{}{tail}", body.repeat(times))
}

/// `head`, numbered parts as long as there is room, `tail`.
fn numbered(head: &str, part: impl Fn(usize) -> String, tail: &str) -> String {
    let mut text = head.to_owned();
    for number in 0.. {
        let next = part(number);
        if text.len() + next.len() + tail.len() > MAX_TEXT {
            break;
        }
        text.push_str(&next);
    }
    text + tail
}

/// `head`, `body` as often as one document may hold what counts `pieces`, `tail`.
fn allowed(head: &str, body: &str, pieces: usize, tail: &str) -> String {
    format!("{head}{}{tail}", body.repeat((MAX_PIECES - 400) / pieces))
}

/// The same with numbered parts.
fn allowed_numbered(head: &str, part: impl Fn(usize) -> String, pieces: usize, tail: &str) -> String {
    (0..(MAX_PIECES - 400) / pieces).fold(head.to_owned(), |text, number| text + &part(number)) + tail
}

fn service(number: usize) -> String {
    let mut text = String::new();
    write!(
        text,
        "---\napiVersion: v1\nkind: Service\nmetadata:\n  name: service-{number}\n  namespace: shop\n  labels:\n    app: service-{number}\n    \
         tier: backend-services-of-the-shop\n  annotations:\n    team: \"team: {number}, [a], {{b}}\"\nspec:\n  selector:\n    app: service-{number}\n  ports:\n    - name: http\n      port: 80\n      \
         targetPort: 8080\n      appProtocol: http\n"
    )
    .unwrap();
    text
}

/// Those of each kind that cost most; the others run in `make test-full`, like tests that are marked as slow.
const QUICK: [&str; 8] = [
    LEGITIMATE,
    "flow set",
    "tag directives",
    "alias bomb",
    "documents of small objects",
    "allowed: block map of texts",
    "allowed: flow pairs with texts",
    "json, one long key",
];

type Text = (&'static str, fn() -> String);

/// The same as a member of a `v1 List`.
fn item(number: usize) -> String {
    let text = service(number).replacen("---\napiVersion", "- apiVersion", 1);
    text.lines().fold(String::new(), |all, line| all + if line.starts_with('-') { "" } else { "  " } + line + "\n")
}

fn texts() -> Vec<Text> {
    vec![
        (LEGITIMATE, || (0..10_000).map(service).collect()),
        ("objects as large as possible", || numbered("", service, "")),
        ("a list of many objects", || numbered("apiVersion: v1\nkind: List\nitems:\n", item, "")),
        ("block list", || filled(HEAD, "\n- a", "\n")),
        ("block list of nothing", || filled(HEAD, "\n-", "\n")),
        ("block list of lists", || filled(HEAD, "\n- - - - a", "\n")),
        ("lists on one line", || filled(HEAD, "- ", "a\n")),
        ("flow list", || filled(HEAD, "a,", "]\n").replacen("spec: a", "spec: [a", 1)),
        ("flow lists", || filled(&format!("{HEAD}["), "[],", "]\n")),
        ("flow maps", || filled(&format!("{HEAD}["), "{},", "]\n")),
        ("flow set", || filled(&format!("{HEAD}{{"), "a,", "}\n")),
        ("flow pairs", || filled(&format!("{HEAD}["), "a: ,", "]\n")),
        ("flow pairs without spaces", || filled(&format!("{HEAD}["), "\"\":,", "]\n")),
        ("flow quoted", || filled(&format!("{HEAD}["), "'',", "]\n")),
        ("flow on many lines", || filled(&format!("{HEAD}["), "a\n,", "]\n")),
        ("flow, deep and wide", || filled(&format!("{HEAD}{}", "[".repeat(60)), "a,", &"]".repeat(60))),
        ("flow, deeper and wide", || filled(&format!("{HEAD}{}", "[".repeat(126)), "a,", &"]".repeat(126))),
        ("block map", || filled(HEAD, "\n a:", "\n")),
        ("block map, other keys", || numbered(HEAD, |n| format!("\n {n:x}:"), "\n")),
        ("block keys", || filled(HEAD, "\n ?", "\n")),
        ("block keys and values", || filled(HEAD, "\n ?\n :", "\n")),
        ("block keys on one line", || filled(HEAD, "? ", "a\n")),
        ("indented maps", || (0..2_800).fold(String::new(), |text, n| text + &" ".repeat(n) + "a:\n")),
        ("one long text", || filled(HEAD, "a", "\n")),
        ("one long quoted text", || filled(&format!("{HEAD}\""), "\\x41", "\"\n")),
        ("one long text of lines", || filled(&format!("{HEAD}|"), "\n a", "\n")),
        ("one long folded text", || filled(HEAD, "\n a", "\n")),
        ("one long key", || filled(&format!("{HEAD}{{"), "a", ": 1}\n")),
        ("one long unquoted kind", || filled("apiVersion: v1\nkind: ", "a", "\n")),
        ("long keys", || numbered(&format!("{HEAD}{{"), |n| format!("{}{n}: 1,\n", "k".repeat(900)), "}\n")),
        ("anchors", || numbered(HEAD, |n| format!("\n- &{n:x} a"), "\n")),
        ("aliases", || filled(&format!("{HEAD}[&a x,"), "*a,", "]\n")),
        ("aliases of a list", || filled(&format!("x: &x [{}]\n{HEAD}[", "a,".repeat(1000)), "*x,", "]\n")),
        ("alias bomb", || {
            let mut text = "a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned();
            for n in 1..20 {
                writeln!(text, "a{n}: &a{n} [{}]", vec![format!("*a{}", n - 1); 10].join(",")).unwrap();
            }
            text
        }),
        ("alias of a long text", || filled(&format!("x: &x {}\n{HEAD}[", "a".repeat(1 << 20)), "*x,", "]\n")),
        ("tags", || filled(&format!("{HEAD}["), "!a b,", "]\n")),
        ("tag directives", || numbered("", |n| format!("%TAG !{n:x}! tag:a\n"), "---\na\n")),
        ("comments", || filled(&format!("{HEAD}[]"), "\n#", "\n")),
        ("blank lines", || filled(HEAD, "\n", "a\n")),
        ("spaces", || filled(HEAD, " ", "a\n")),
        ("tabs", || filled(HEAD, "\t", "a\n")),
        ("carriage returns", || filled(HEAD, "\r- a", "\r")),
        ("other line ends", || filled(HEAD, "\u{85}- a", "\u{2028}")),
        ("documents", || filled("", "---\na\n", "")),
        ("empty documents", || filled("", "---\n", "")),
        ("documents that end", || filled("", "a\n...\n", "")),
        ("documents on one line", || filled("", "--- a\n", "")),
        ("documents of small objects", || {
            numbered(
                "",
                |n| {
                    format!(
                        "---\n{{apiVersion: v1, kind: Service, metadata: {{name: s{n:x}}}, spec: {{ports: [{{port: 1}}]}}}}\n"
                    )
                },
                "",
            )
        }),
        ("json list", || filled("{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[1", ",1", "]}")),
        ("json lists", || filled("{\"a\":[[]", ",[]", "]}")),
        ("json, cut off", || filled("{\"a\":[1", ",1", "")),
        ("json map", || numbered("{\"a\":1", |n| format!(",\"{n:x}\":1"), "}")),
        ("json text", || filled("{\"a\":\"", "\\n", "\"}")),
        ("json spaces", || filled("{", " ", "}")),
        ("wrong members", || {
            filled(&format!("{HEAD}{{ports: ["), "{},", "]}\n").chars().take(150_000).collect::<String>() + "]}\n"
        }),
        ("many wrong members", || format!("{HEAD}{{ports: [{}]}}\n", "{},".repeat(60_000))),
        ("unknown fields", || {
            numbered(&format!("{HEAD}{{"), |n| format!("f{n}: 1,"), "}\n").chars().take(600_000).collect::<String>()
                + "}\n"
        }),
        ("paths", || format!("{RULES}{}]}}]}}]}}\n", (0..60_000).map(|n| format!("/{n}, ")).collect::<String>())),
        ("ports", || {
            format!(
                "{HEAD}{{ports: [{}]}}\n",
                (1..30_000).map(|n| format!("{{port: {n}, name: p{n}}}, ")).collect::<String>()
            )
        }),
        ("labels", || {
            format!(
                "apiVersion: v1\nkind: Service\nspec: {{ports: [{{port: 1}}]}}\nmetadata: {{name: a, labels: {{{}}}}}\n",
                (1..60_000).map(|n| format!("l{n}: a, ")).collect::<String>()
            )
        }),
        ("brackets in texts", || filled(HEAD, "\n- '[{,'", "\n")),
        ("allowed: block list", || allowed(HEAD, "\n- a", 3, "\n")),
        ("allowed: block list of nothing", || allowed(HEAD, "\n-", 3, "\n")),
        ("allowed: block list of lists", || allowed(HEAD, "\n- - - - a", 9, "\n")),
        ("allowed: block list of maps", || allowed(HEAD, "\n- a:", 4, "\n")),
        ("allowed: block list of maps, nested", || allowed(HEAD, "\n- a:\n   a:\n    a:", 8, "\n")),
        ("allowed: flow list", || allowed(&format!("{HEAD}["), "a,", 2, "]\n")),
        ("allowed: flow lists", || allowed(&format!("{HEAD}["), "[],", 4, "]\n")),
        ("allowed: flow lists of one", || allowed(&format!("{HEAD}["), "[a],", 4, "]\n")),
        ("allowed: flow maps", || allowed(&format!("{HEAD}["), "{},", 5, "]\n")),
        ("allowed: flow maps of one", || allowed(&format!("{HEAD}["), "{a},", 5, "]\n")),
        ("allowed: flow set", || allowed_numbered(&format!("{HEAD}{{"), |n| format!("{n:x},"), 2, "}\n")),
        ("allowed: flow pairs", || allowed(&format!("{HEAD}["), "a: ,", 3, "]\n")),
        ("allowed: flow pairs with texts", || allowed(&format!("{HEAD}["), "a: b,", 3, "]\n")),
        ("allowed: flow pairs without spaces", || allowed(&format!("{HEAD}["), "'':,", 3, "]\n")),
        ("allowed: flow quoted", || allowed(&format!("{HEAD}["), "'',", 2, "]\n")),
        ("allowed: flow, deep and wide", || allowed(&format!("{HEAD}{}", "[".repeat(60)), "a,", 2, &"]".repeat(60))),
        ("allowed: flow, deeper and wide", || {
            allowed(&format!("{HEAD}{}", "[".repeat(124)), "a,", 2, &"]".repeat(124))
        }),
        ("allowed: flow keys, deep and wide", || {
            allowed(&format!("{HEAD}{}", "{a: ".repeat(60)), "a,", 2, &"}".repeat(60))
        }),
        ("allowed: block map", || allowed_numbered(HEAD, |n| format!("\n {n:x}:"), 2, "\n")),
        ("allowed: block map of texts", || allowed_numbered(HEAD, |n| format!("\n {n:x}: b"), 2, "\n")),
        ("allowed: block keys", || allowed(HEAD, "\n ?", 5, "\n")),
        ("allowed: block keys on one line", || allowed(HEAD, "? ", 4, "a\n")),
        ("allowed: anchors", || allowed_numbered(&format!("{HEAD}["), |n| format!("&{n:x} a,"), 2, "]\n")),
        ("allowed: aliases", || allowed(&format!("{HEAD}[&a x,"), "*a,", 2, "]\n")),
        ("allowed: aliases of a list", || allowed(&format!("x: &x [{}]\n{HEAD}[", "a,".repeat(190)), "*x,", 2, "]\n")),
        ("allowed: aliases of a map", || allowed(&format!("x: &x {{a: b, c: d}}\n{HEAD}["), "*x,", 2, "]\n")),
        ("allowed: aliases of aliases", || {
            let list = |name: &str, of: &str| format!("{name}: &{name} [{}]\n", format!("{of},").repeat(60));
            list("a", "x") + &list("b", "*a") + &list("c", "*b") + HEAD + "[*c]\n"
        }),
        ("allowed: tags", || allowed(&format!("{HEAD}["), "!!str b,", 2, "]\n")),
        ("allowed: long texts", || format!("{HEAD}[{}]\n", format!("\"{}\",", "\\x41".repeat(1000)).repeat(1000))),
        ("allowed: list of objects", || {
            numbered("apiVersion: v1\nkind: List\nitems:\n", item, "")
                .lines()
                .take(130_000)
                .fold(String::new(), |text, line| text + line + "\n")
        }),
        ("json objects", || {
            let item = |n: usize| {
                format!(
                    "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"s{n}\"}},\"spec\":{{\"ports\":[{{\"port\":80}}]}}}}"
                )
            };
            (1..24_000).fold(format!("{{\"apiVersion\":\"v1\",\"kind\":\"List\",\"items\":[{}", item(0)), |text, n| {
                text + "," + &item(n)
            }) + "]}"
        }),
        ("json maps of one", || format!("{{\"a\":[{{}}{}]}}", ",{\"a\":1}".repeat(99_000))),
        ("json keys", || (0..199_000).fold("{\"a\":1".to_owned(), |text, n| format!("{text},\"{n:x}_\":1")) + "}"),
        ("json, one long key", || {
            filled(
                "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"},\"spec\":{\"ports\":[],\"",
                "k",
                "\":1}}",
            )
        }),
        ("json, many wrong members", || {
            format!(
                "{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{{\"name\":\"a\"}},\"spec\":{{\"ports\":[{{}}{}]}}}}",
                ",{}".repeat(190_000)
            )
        }),
        ("byte order marks", || filled("", "\u{feff}", "a")),
    ]
}

/// What one text cost, as its own process saw it: time on a CPU, memory, and what was said.
fn measure(text: &str) -> (Duration, usize, String) {
    let (before, start) = (memory("VmRSS:"), cpu_time());
    let result = parse_documents(text);
    let took = cpu_time() - start;
    let used = memory("VmHWM:").saturating_sub(before);
    let says = match &result {
        Ok(objects) => format!("{} objects", objects.len()),
        Err(errors) => errors.first().map(ToString::to_string).unwrap_or_default(),
    };
    (took, used, says)
}

fn cpu_time() -> Duration {
    let text = fs::read_to_string("/proc/self/schedstat").unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// A line of `/proc/self/status`, in bytes.
fn memory(field: &str) -> usize {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the kernel tells");
    line.trim_matches(|c: char| !c.is_ascii_digit()).parse::<usize>().unwrap() << 10
}

fn main() -> ExitCode {
    let texts = texts();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, wanted] = arguments.as_slice()
        && flag == "--text"
    {
        let (_, make) = texts.iter().find(|(name, _)| name == wanted).expect("a known text");
        let text = make();
        assert!(text.len() <= MAX_TEXT, "{wanted}");
        let (took, used, says) = measure(&text);
        let shown: String = says.chars().take(100).collect();
        println!("{} {used} {} {}", took.as_micros(), says.len(), shown.escape_debug());
        return ExitCode::SUCCESS;
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let is_full = arguments.iter().any(|argument| argument == "--include-ignored" || argument == "--ignored");
    let is_wanted = |name: &str| match wanted.as_slice() {
        [] => is_full || QUICK.contains(&name),
        some => some.iter().any(|part| name.contains(part.as_str())),
    };
    let mut is_good = true;
    for (name, _) in texts.iter().filter(|(name, _)| is_wanted(name)) {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--text", name])
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        let line = String::from_utf8_lossy(&output.stdout).into_owned();
        let mut parts = line.trim_end().splitn(4, ' ');
        let mut number = || parts.next().and_then(|part| part.parse::<usize>().ok());
        let (Some(micros), Some(used), Some(length)) = (number(), number(), number()) else {
            panic!("{name}: {} {line}", output.status);
        };
        let says = parts.next().unwrap_or_default();
        let is_wrong = if *name == LEGITIMATE { says != "10000 objects" } else { length > MAX_MESSAGE };
        let verdict = match () {
            () if micros > MAX_MICROS => "TOO LONG",
            () if used > MAX_MEMORY => "TOO MUCH",
            () if is_wrong => "WRONG",
            () => "ok",
        };
        is_good &= verdict == "ok";
        println!("{name:<35} {:>6} ms {:>6} KiB {verdict:<8} {says}", micros / 1000, used >> 10);
    }
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
