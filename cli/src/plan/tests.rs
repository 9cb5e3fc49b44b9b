use serde_json::Value;

use super::*;

fn repository(path: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", path].iter().collect()
}

/// What a person is told.
fn told(text: &str) -> String {
    told_of(Language::Toml, text)
}

fn told_of(language: Language, text: &str) -> String {
    let path = if language == Language::Toml { "plan.toml" } else { "plan.yaml" };
    match parse(text, language, Extent::Whole, Path::new("")) {
        Ok(plan) => panic!("{text:?} is taken as {plan:?}"),
        Err(problem) => problem.in_file(Path::new(path), text).lines().join("\n"),
    }
}

fn parse_toml(text: &str, folder: &str) -> CheckpointPlan {
    parse(text, Language::Toml, Extent::Whole, Path::new(folder)).unwrap()
}

/// The plans of the manual.
fn examples(language: &str) -> Vec<String> {
    let manual = std::fs::read_to_string(repository("docs/guide/plan.md")).unwrap();
    let begin = format!("```{language}\n");
    manual.split(&begin).skip(1).map(|block| block.split("```").next().unwrap().to_owned()).collect()
}

#[test]
fn the_manual_is_right() {
    let examples = examples("toml");
    let plan = parse_toml(&examples[0], "/etc/ledger");
    let member = |id: &str, container: &str, engine, depends_on: &[&str], bundle: Option<&str>| PlanMember {
        id: id.parse().unwrap(),
        container: container.to_owned(),
        engine: Some(engine),
        depends_on: depends_on.iter().map(|id| id.parse().unwrap()).collect(),
        bundle: bundle.map(PathBuf::from),
        without_rootfs: bundle.is_some(),
    };
    let expected = CheckpointPlan {
        application: Some("ledger".parse().unwrap()),
        to: Some("archive.example/sdp/ledger".parse().unwrap()),
        key: Some("/etc/ledger/cosign.key".into()),
        stop: None,
        gather: Some(Duration::from_secs(30)),
        freeze: Some(Duration::from_secs(5)),
        pages: None,
        guard: GuardPlan::default(),
        members: vec![
            member("consumer", "consumer", EngineKind::Podman, &[], None),
            member("producer", "ledger-producer-1", EngineKind::Podman, &["consumer"], None),
            member(
                "auditor",
                "auditor",
                EngineKind::Runc,
                &["consumer", "producer"],
                Some("/etc/ledger/bundles/auditor"),
            ),
        ],
    };
    assert_eq!(plan, expected);
    for same in self::examples("yaml") {
        assert_eq!(parse(&same, Language::Yaml, Extent::Whole, Path::new("/etc/ledger")).unwrap(), plan);
    }
    let listed = parse_toml(&examples[1], "");
    assert_eq!((listed.stop, listed.members.len(), listed.members[1].engine), (Some(true), 2, None));

    let broken = examples[0].replacen("depends-on", "depend-on", 1);
    let manual = std::fs::read_to_string(repository("docs/guide/plan.md")).unwrap();
    assert!(manual.contains(&told(&broken).replace("plan.toml", "ledger.toml")), "{}", told(&broken));
}

#[test]
fn what_a_guard_does_stands_in_the_plan_too() {
    let guard = GuardPlan {
        interval: Some(Duration::from_secs(30)),
        on_terminate: Some(OnTerminate::Preempt),
        attempts: Some(3),
        probation: Some(Duration::from_secs(5)),
        retention: Some(registry::Policy {
            last: 3,
            within: Some(Duration::from_secs(7 * 86_400)),
            daily: 2,
            tags: vec!["night-*".parse().unwrap()],
            ..registry::Policy::default()
        }),
        storage: Vec::new(),
    };
    let toml = "interval = \"30s\"\non-terminate = \"preempt\"\n[guard]\nattempts = 3\nprobation = \"5s\"\n\
                [retention]\nkeep-last = 3\nkeep-within = \"7d\"\nkeep-daily = 2\nkeep-tag = [\"night-*\"]\n[members.a]";
    let yaml = "interval: 30s\non-terminate: preempt\nguard:\n  attempts: \"3\"\n  probation: 5s\n\
                retention: {keep-last: \"3\", keep-within: 7d, keep-daily: \"2\", keep-tag: [night-*]}\nmembers:\n  a:\n";
    assert_eq!(parse_toml(toml, "").guard, guard);
    assert_eq!(parse(yaml, Language::Yaml, Extent::Whole, Path::new("")).unwrap().guard, guard);
}

#[test]
fn a_pattern_says_what_is_the_same_for_all() {
    let pattern = |text| parse(text, Language::Toml, Extent::Pattern, Path::new(""));
    let places = pattern("storage = [\"host:5000/sdp\", \"oci:/srv\"]").unwrap().guard.storage;
    assert_eq!(places.iter().map(ToString::to_string).collect::<Vec<_>>(), ["host:5000/sdp", "oci:/srv"]);
    assert!(pattern("storage = [\"host:5000/sdp:tag\"]").is_err());
    let whole = parse("storage = [\"host:5000/sdp\"]\n[members.a]", Language::Toml, Extent::Whole, Path::new(""));
    assert!(whole.is_err(), "there it is `to` that says it");
    let plan = pattern("key = \"k\"\n[guard]\nattempts = 3\n[retention]\nkeep-last = 2").unwrap();
    assert_eq!((plan.key, plan.guard.attempts, plan.members.len()), (Some("k".into()), Some(3), 0));
    for text in ["application = \"a\"", "to = \"oci:x\"", "interval = \"1s\"", "[members.a]"] {
        assert!(pattern(text).is_err(), "{text}");
    }
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let plans = [
        "application = \"ledger",
        "application = 3\n[members.a]",
        "application = \"-x\"\n[members.a]",
        "to = \"no such place\"\n[members.a]",
        "aplication = \"x\"\n[members.a]",
        "colour = \"x\"\n[members.a]",
        "stop = true\nleave-running = true\n[members.a]",
        "stop = \"yes\"\n[members.a]",
        "[deadlines]\ngather = \"30\"\n[members.a]",
        "[deadlines]\nfreeze = \"0s\"\n[members.a]",
        "[deadlines]\nfreeze = \"99999m\"\n[members.a]",
        "[deadlines]\nfreez = \"1s\"\n[members.a]",
        "engine = \"lxc\"\n[members.a]",
        "interval = \"1ms\"\n[members.a]",
        "on-terminate = \"stop\"\n[members.a]",
        "pages = \"memory\"\n[members.a]",
        "[guard]\nattempts = \"x\"\n[members.a]",
        "[guard]\nattempts = 0\n[members.a]",
        "[retention]\n[members.a]",
        "[retention]\nkeep-last = 0\n[members.a]",
        "[retention]\nkeep-within = \"7 days\"\n[members.a]",
        "application = \"x\"",
        "members = []",
        "members = \"a\"",
        "members = [\"a\"]",
        "[[members]]\ncontainer = \"x\"",
        "[[members]]\nid = \"a\"\n[[members]]\nid = \"a\"",
        "[members.\"a b\"]",
        "[members.a]\n[members.b]\ncontainer = \"a\"",
        "[members.a]\ncontainer = \"\"",
        "[members.a]\nbundle = \"x\"\nengine = \"podman\"",
        "[members.a]\nwithout-rootfs = true\nengine = \"podman\"",
        "[members.a]\nwithout-rootfs = \"/data\"",
        "[members.a]\ndepends-on = \"b\"",
        "[members.a]\ndepends-on = [\"a\"]",
        "[members.consumer]\n[members.b]\ndepends-on = [\"consumr\"]",
        "[members.b]\n[members.a]\ndepends-on = [\"b\", \"b\"]",
        "[members.a]\ndepends-on = [\"x\"]\n[members.x]\ndepends-on = [\n  \"y\",\n  \"z\",\n]\n[members.y]\n[members.z]\ndepends-on = [\"x\"]",
        "[members.a]\nid = \"b\"",
        "[members.a]\n[members.a]",
    ];
    let all: Vec<_> = plans.iter().map(|plan| told(plan)).collect();
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn what_is_wrong_in_yaml_is_said_with_its_place() {
    let plans = [
        "application: \"ledger",
        "application: ledger\n  to: x\nmembers:",
        "application: 3\nmembers: {a: }",
        "application: -x\nmembers: {a: }",
        "aplication: x\nmembers: {a: }",
        "application:\nmembers: {a: }",
        "stop: yes\nmembers: {a: }",
        "stop: true\nleave-running: true\nmembers: {a: }",
        "deadlines:\n  gather: 30\nmembers: {a: }",
        "deadlines:\n  freeze: 0s\nmembers: {a: }",
        "",
        "- members",
        "members: []",
        "members: a",
        "members:",
        "members: [a]",
        "members:\n  - container: x",
        "members:\n  a:\n  a:\n",
        "members:\n  a b:\n",
        "members:\n  a:\n    depend-on: [b]\n",
        "members:\n  consumer:\n  b:\n    depends-on:\n      - consumr\n",
        "members:\n  a: {depends-on: [x]}\n  x:\n    depends-on:\n      - y\n      - z\n  y:\n  z: {depends-on: [x]}\n",
        "members:\n  a: &a {engine: runc}\n  b: *a\n",
        "members:\n  a: !!str b\n",
        "members:\n  ? [a]\n  : b\n",
        "members: {a: }\n---\nmembers: {b: }\n",
        "members:\n\ta:\n",
    ];
    let all: Vec<_> = plans.iter().map(|plan| told_of(Language::Yaml, plan)).collect();
    insta::assert_snapshot!(all.join("\n\n"));
}

#[test]
fn yaml_says_the_same_in_its_own_ways() {
    let block =
        "application: x\nleave-running: false\nmembers:\n  b:\n  a:\n    container: \"12\"\n    depends-on:\n    - b\n";
    let flow = "{application: x, stop: true, members: [{id: b}, {id: a, container: '12', depends-on: [b]}]}";
    let toml = "application = \"x\"\nstop = true\n[members.b]\n[members.a]\ncontainer = \"12\"\ndepends-on = [\"b\"]";
    let expected = parse_toml(toml, "");
    for yaml in [block, flow, &format!("%YAML 1.2\n---\n{block}...\n"), &format!("\u{feff}{block}")] {
        assert_eq!(parse(yaml, Language::Yaml, Extent::Whole, Path::new("")).unwrap(), expected, "{yaml}");
    }
    let folder = tempfile::tempdir().unwrap();
    for (name, yaml) in [("p.yaml", true), ("p.yml", true), ("p.toml", false), ("p", false), ("yaml", false)] {
        let path = folder.path().join(name);
        std::fs::write(&path, block).unwrap();
        assert_eq!(read(&path).is_ok(), yaml, "{name}");
    }
}

#[test]
fn hostile_yaml_is_refused_in_no_time() {
    let size = usize::try_from(MAX_BYTES).unwrap();
    let laughs: String =
        (1..10).map(|n| format!("l{n}: &l{n} [{}]\n", vec![format!("*l{}", n - 1); 9].join(","))).collect();
    let laughs = format!("l0: &l0 [x]\n{laughs}");
    let mut texts = vec![laughs];
    for unit in [
        "[", "{", "{a: ", "- ", "? ", "a: ", "[a, ", "!", "&a ", "*a ", "'", "\"", "|\n", "# ", "\n", "\t", "a: {}\n",
        "- a\n", "]", ":", ",", "--- ", "---\n", "%A\n", "[? ", "a", "a ", "a\n", "\u{feff}", "\u{85}",
    ] {
        texts.push(unit.repeat(size / unit.len()));
    }
    texts.push((0..80_000).map(|n| format!("a{n}: {{}}\n")).collect());
    texts.push((0..9_000).map(|n| format!("{}a:\n", " ".repeat(n % 100))).collect());
    for text in texts {
        let begun = std::time::Instant::now();
        told_of(Language::Yaml, &text);
        let took = begun.elapsed();
        let head: String = text.chars().take(20).collect();
        assert!(took < Duration::from_secs(10), "{took:?} for {head:?}");
    }
}

#[test]
fn files_that_are_no_plans_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("plan.toml");
    assert_eq!(read(&path).unwrap_err().exit(), Exit::NotFound);
    for (content, expected) in [(vec![b'#'; 2 << 20], "more than 1 MiB"), (vec![0xff], "no UTF-8")] {
        std::fs::write(&path, content).unwrap();
        let error = read(&path).unwrap_err();
        assert!(error.exit() == Exit::Usage && error.lines().join("\n").contains(expected), "{error:?}");
    }
    std::fs::write(&path, "key = \"k\"\n[members.a]\n").unwrap();
    assert_eq!(read(&path).unwrap().key, Some(folder.path().join("k")));
}

#[test]
fn many_members_are_no_problem() {
    let chain = |count: usize| {
        (0..count).map(|n| format!("[members.m{n}]\ndepends-on = [\"m{}\"]\n", (n + 1) % count)).collect::<String>()
    };
    assert!(told(&chain(MAX_MEMBERS)).contains("in a circle: m0 -> m1 -> "));
    assert!(told(&chain(MAX_MEMBERS + 1)).contains("4097 members; at most 4096"));
    let open = chain(MAX_MEMBERS).replacen("\"m0\"", "", 1);
    assert_eq!(parse_toml(&open, "").members.len(), MAX_MEMBERS);
    let deep = format!("a = {}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(told(&deep).contains("plan.toml:1:"));
}

#[test]
fn the_schema_says_the_same() {
    let schema: Value =
        serde_json::from_str(&std::fs::read_to_string(repository("docs/checkpoint-plan.schema.json")).unwrap())
            .unwrap();
    let mut compiler = boon::Compiler::new();
    compiler.add_resource("schema.json", schema).unwrap();
    let mut schemas = boon::Schemas::new();
    let schema = compiler.compile("schema.json", &mut schemas).unwrap();
    let validate = |plan: &str| {
        let value = serde_json::to_value(toml::from_str::<toml::Table>(plan).unwrap()).unwrap();
        schemas.validate(&value, schema).map_err(|error| error.to_string())
    };
    for plan in examples("toml") {
        validate(&plan).unwrap();
    }
    let nothing = serde_json::json!({ "members": { "a": null } });
    schemas.validate(&nothing, schema).map_err(|error| error.to_string()).unwrap();
    validate("leave-running = false\nstop = true\npages = \"tls\"\n[deadlines]\n[members.a]\nengine = \"runc\"\nbundle = \"b\"\nwithout-rootfs = true")
        .unwrap();
    for plan in [
        "application = \"-x\"\n[members.a]",
        "aplication = \"x\"\n[members.a]",
        "stop = \"yes\"\n[members.a]",
        "key = \"\"\n[members.a]",
        "engine = \"lxc\"\n[members.a]",
        "[deadlines]\ngather = \"30\"\n[members.a]",
        "[deadlines]\nfreeze = \"0s\"\n[members.a]",
        "[deadlines]\nfreez = \"1s\"\n[members.a]",
        "application = \"x\"",
        "members = []",
        "members = [\"a\"]",
        "[members]",
        "[members.\"a b\"]",
        "[members.a]\nid = \"a\"",
        "[[members]]\ncontainer = \"a\"",
        "[[members]]\nid = \"a\"\ndepend-on = []",
        "[members.a]\ncontainer = \"\"",
        "[members.a]\ndepends-on = \"b\"",
        "[members.b]\n[members.a]\ndepends-on = [\"b\", \"b\"]",
    ] {
        assert!(validate(plan).is_err(), "the schema takes {plan:?}");
        assert!(parse(plan, Language::Toml, Extent::Whole, Path::new("")).is_err(), "the parser takes {plan:?}");
    }
}
