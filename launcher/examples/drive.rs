//! drive pack LAYOUT TAG APP member[:dep,dep]=DUMP[,BUNDLECONFIG]...   |  drive restore LAYOUT TAG HOOK WORK [--key x] [attempts] [hold_ms]
use image_format::*;
use launcher::*;
use registry::*;
use std::sync::Arc;
use std::time::{Duration, Instant};
struct Say(Instant);
impl Observer for Say {
    fn phase(&self, p: Phase) {
        eprintln!("{:8.3} == {p}", self.0.elapsed().as_secs_f64());
    }
    fn member(&self, m: &MemberId, s: MemberStep) {
        if !matches!(s, MemberStep::Received { .. }) {
            eprintln!("{:8.3} {m}: {s:?}", self.0.elapsed().as_secs_f64());
        }
    }
    fn warning(&self, w: &str) {
        eprintln!("{:8.3} warning: {w}", self.0.elapsed().as_secs_f64());
    }
}
#[tokio::main]
async fn main() {
    let a: Vec<String> = std::env::args().collect();
    if a[1] == "pack" {
        let store: Arc<dyn Store> = Arc::new(LayoutStore::create(a[2].as_ref()).unwrap());
        let mut members = vec![];
        for spec in &a[5..] {
            let (id, dump) = spec.split_once('=').unwrap();
            let (id, deps) = id.split_once(':').unwrap_or((id, ""));
            let (dump, cfg) = match dump.split_once(',') {
                Some((d, c)) => (d, Some(c.to_owned())),
                None => (dump, None),
            };
            let id: MemberId = id.parse().unwrap();
            let depends_on: Vec<MemberId> =
                deps.split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
            let bridge = Bridge::new(tokio::runtime::Handle::current(), store.clone());
            let (i, d, dump) = (id.clone(), depends_on.clone(), dump.to_owned());
            let packed = tokio::task::spawn_blocking(move || {
                let source = DumpSource::open(dump.as_ref(), cfg.as_ref().map(|c| c.as_ref())).unwrap();
                let options = PackOptions { member: Some(i), depends_on: d, ..Default::default() };
                pack(source, &options, &bridge).unwrap()
            })
            .await
            .unwrap();
            store.put_manifest(&packed.manifest, None).await.unwrap();
            eprintln!("{id}: {:?}", packed.facts);
            members.push(MemberEntry {
                id,
                depends_on,
                manifest: packed.manifest.descriptor(),
                annotations: Default::default(),
            });
        }
        let global = GlobalCheckpoint::new(
            a[4].parse().unwrap(),
            Epoch(1),
            None,
            "2026-11-23T00:00:00Z".into(),
            members,
            Default::default(),
        )
        .unwrap();
        let doc = global.to_document().unwrap();
        store.put_manifest(&doc, Some(&a[3].parse().unwrap())).await.unwrap();
        return;
    }
    let store: Arc<dyn Store> = Arc::new(LayoutStore::open(a[2].as_ref()).unwrap());
    let root = store.resolve(&Selector::Tag(a[3].parse().unwrap())).await.unwrap();
    let mut options = RestoreOptions::new(a[4].clone().into(), Trust::InsecureNoVerify);
    options.work_dir = a[5].clone().into();
    for extra in &a[6..] {
        let (k, v) = extra.split_once('=').unwrap();
        match k {
            "attempts" => options.attempts = v.parse().unwrap(),
            "hold" => options.deadlines.hold = Duration::from_millis(v.parse().unwrap()),
            "gather" => options.deadlines.gather = Duration::from_millis(v.parse().unwrap()),
            "name" => {
                let (m, n) = v.split_once(':').unwrap();
                options.names.insert(m.parse().unwrap(), n.into());
            }
            "bundle" => {
                let (m, n) = v.split_once(':').unwrap();
                options.bundles.insert(m.parse().unwrap(), n.into());
            }
            "run" => options.run_root = v.into(),
            _ => panic!(),
        }
    }
    let cancel = options.cancel.clone();
    tokio::spawn(async move {
        tokio::signal::ctrl_c().await.unwrap();
        cancel.cancel();
    });
    match restore(store, root, &options, &Say(Instant::now())).await {
        Ok(report) => println!("{report:?}"),
        Err(error) => {
            println!("FAILED in {}: {error}; member {:?} hook {:?}", error.phase, error.member, error.hook);
            let mut s = std::error::Error::source(&error);
            while let Some(e) = s {
                println!("  because {e}");
                s = e.source();
            }
            for l in &error.log_lines {
                println!("  log: {l}");
            }
            for l in &error.leftovers {
                println!("  left: {l}");
            }
            if let RestoreErrorKind::Preflight { problems } = &*error.kind {
                for p in problems {
                    println!("  - {p} [{}]", p.hint());
                }
            }
            std::process::exit(8);
        }
    }
}
