//! Draws a timeline: members as rows, phases as bars, barriers as lines.
//!
//! The picture is an SVG document of its own: no scripts, no fonts, no links; it follows the reader's choice of light or
//! dark, and says in words what it shows to those who cannot see it.

use std::fmt::{self, Write as _};
use std::fs::Permissions;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use image_format::{MemberTimeline, Span, Timeline};

use crate::error::{CommandError, While};
use crate::output::{count, size};

/// Width of the names of members, of the bars, and of what is said behind them.
const NAMES: f64 = 170.0;
const BARS: f64 = 640.0;
const NOTES: f64 = 230.0;
/// Above the rows: the title, the legend, the names of barriers.
const TOP: f64 = 120.0;
const ROW: f64 = 36.0;
/// Below the rows: the scale.
const BOTTOM: f64 = 34.0;
const BAR: f64 = 8.0;
/// Characters of a member's name that fit; all of it is in the row's title.
const NAME_CHARS: usize = 20;
/// A bar that is shorter than this could not be seen.
const MIN_BAR: f64 = 1.5;

/// The colours, by class; waited and frozen are drawn in one lane, what follows in lanes below.
const STYLE: &str = "\
text{font:12px system-ui,sans-serif;fill:#1f2328}\
.page{fill:#fff}.title{font-size:16px;font-weight:600}.dim{fill:#59636e}.line{stroke:#d1d9e0}\
.barrier{stroke:#8250df;stroke-dasharray:4 3}.hook{fill:#8250df}.capture{fill:#8250df;fill-opacity:.15}\
.waited{fill:#c8ccd1}.frozen{fill:#cf222e}.dumped{fill:#bc6c00}.packed{fill:#1a7f37}.sent{fill:#0969da}\
@media(prefers-color-scheme:dark){text{fill:#e6edf3}.page{fill:#0d1117}.dim{fill:#9198a1}.line{stroke:#3d444d}\
.barrier{stroke:#ab7df8}.hook{fill:#ab7df8}.capture{fill:#ab7df8}\
.waited{fill:#656c76}.frozen{fill:#f85149}.dumped{fill:#e0a030}.packed{fill:#3fb950}.sent{fill:#4493f8}}";

/// Draws. The title says what was checkpointed.
pub fn svg(timeline: &Timeline, title: &str) -> String {
    let mut picture = String::new();
    // Writing to a String does not fail.
    let _ = Drawing::new(timeline, title).draw(&mut picture);
    picture
}

/// Draws into a file, which is there whole or not at all; one of that name is replaced.
pub fn save(path: &Path, timeline: &Timeline, title: &str) -> Result<(), CommandError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> io::Result<()> {
        let readable = Permissions::from_mode(0o666);
        let mut file = tempfile::Builder::new().prefix(".timeline-").permissions(readable).tempfile_in(folder)?;
        file.write_all(svg(timeline, title).as_bytes())?;
        file.persist(path)?;
        Ok(())
    };
    write().doing(|| format!("the timeline cannot be written to {}", path.display()))
}

struct Drawing<'a> {
    timeline: &'a Timeline,
    title: &'a str,
    /// Microseconds that the bars' width stands for.
    total: u64,
    step: u64,
    height: f64,
}

impl<'a> Drawing<'a> {
    fn new(timeline: &'a Timeline, title: &'a str) -> Self {
        let step = step(timeline.end());
        let total = timeline.end().div_ceil(step).max(1).saturating_mul(step);
        let height = TOP + ROW * timeline.members.len() as f64 + BOTTOM;
        Self { timeline, title, total, step, height }
    }

    fn draw(&self, out: &mut String) -> fmt::Result {
        let (width, height) = (NAMES + BARS + NOTES, self.height);
        writeln!(
            out,
            r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-labelledby="title desc">"#
        )?;
        writeln!(out, r#"<title id="title">{}</title>"#, Text(self.title))?;
        writeln!(out, r#"<desc id="desc">{}</desc>"#, Text(&self.in_words()))?;
        writeln!(out, "<style>{STYLE}</style>")?;
        writeln!(out, r#"<rect class="page" width="{width}" height="{height}"/>"#)?;
        writeln!(out, r#"<text class="title" x="16" y="28">{}</text>"#, Text(&cut(self.title, 110)))?;
        let started = format!("begun {}", self.timeline.started);
        writeln!(out, r#"<text class="dim" x="16" y="46">{}</text>"#, Text(&started))?;
        self.draw_legend(out)?;
        self.draw_scale(out)?;
        self.draw_capture(out)?;
        for (row, member) in self.timeline.members.iter().enumerate() {
            self.draw_member(out, TOP + ROW * row as f64, member)?;
        }
        self.draw_barriers(out)?;
        writeln!(out, "</svg>")
    }

    fn draw_legend(&self, out: &mut String) -> fmt::Result {
        for (place, name) in ["waited", "frozen", "dumped", "packed", "sent"].iter().enumerate() {
            let x = NAMES + 90.0 * place as f64;
            writeln!(out, r#"<rect class="{name}" x="{x}" y="56" width="12" height="12" rx="2"/>"#)?;
            writeln!(out, r#"<text x="{}" y="66">{name}</text>"#, x + 18.0)?;
        }
        Ok(())
    }

    fn draw_scale(&self, out: &mut String) -> fmt::Result {
        let bottom = self.height - BOTTOM;
        for tick in (0..=self.total / self.step).map(|tick| tick * self.step) {
            let x = self.x(tick);
            writeln!(out, r#"<line class="line" x1="{x:.1}" y1="{TOP}" x2="{x:.1}" y2="{bottom}"/>"#)?;
            let (y, time) = (bottom + 18.0, duration(tick));
            writeln!(out, r#"<text class="dim" x="{x:.1}" y="{y}" text-anchor="middle">{time}</text>"#)?;
        }
        Ok(())
    }

    fn draw_capture(&self, out: &mut String) -> fmt::Result {
        let Some(capture) = self.timeline.capture else {
            return Ok(());
        };
        let (x, width, height) = (self.x(capture.begin), self.width(capture), self.height - BOTTOM - TOP);
        write!(out, r#"<rect class="capture" x="{x:.1}" y="{TOP}" width="{width:.1}" height="{height}">"#)?;
        writeln!(out, "<title>{}</title></rect>", Text(&said("the members' files were taken", capture)))
    }

    fn draw_member(&self, out: &mut String, y: f64, member: &MemberTimeline) -> fmt::Result {
        let name = member.id.as_str();
        writeln!(out, "<g><title>{}</title>", Text(name))?;
        writeln!(out, r#"<text x="16" y="{}">{}</text>"#, y + 22.0, Text(&cut(name, NAME_CHARS)))?;
        for (phase, span) in member.spans() {
            let lane = match phase {
                "waited" | "frozen" => 0.0,
                "dumped" | "packed" => 1.0,
                _ => 2.0,
            };
            if let Some(span) = span {
                let (x, y, width) = (self.x(span.begin), y + 4.0 + lane * (BAR + 2.0), self.width(span));
                write!(out, r#"<rect class="{phase}" x="{x:.1}" y="{y}" width="{width:.1}" height="{BAR}" rx="1.5">"#)?;
                writeln!(out, "<title>{}</title></rect>", Text(&said(&format!("{name}: {phase}"), span)))?;
            }
        }
        let frozen = member.frozen.map(|span| format!("frozen {}", duration(span.micros())));
        let sent = member.sent.map(|_| format!("sent {}", size(member.bytes_sent)));
        let note = [frozen, sent].into_iter().flatten().collect::<Vec<_>>().join(", ");
        writeln!(out, r#"<text class="dim" x="{}" y="{}">{note}</text></g>"#, NAMES + BARS + 24.0, y + 22.0)
    }

    /// The name of a barrier stands over its line; where it would cover another one, it gives way upwards.
    fn draw_barriers(&self, out: &mut String) -> fmt::Result {
        let mut lanes = [f64::NEG_INFINITY; 3];
        for barrier in &self.timeline.barriers {
            let (x, end) = (self.x(barrier.opened), self.height - BOTTOM);
            let lane = lanes.iter().position(|end| *end <= x).unwrap_or(0);
            lanes[lane] = x + 7.0 * barrier.hook.chars().count() as f64 + 8.0;
            let y = TOP - 4.0 - 14.0 * lane as f64;
            write!(out, r#"<line class="barrier" x1="{x:.1}" y1="{:.1}" x2="{x:.1}" y2="{end}">"#, y + 2.0)?;
            let words = format!("{} opened at {}", barrier.hook, duration(barrier.opened));
            writeln!(out, "<title>{}</title></line>", Text(&words))?;
            writeln!(out, r#"<text class="hook" x="{x:.1}" y="{y:.1}">{}</text>"#, Text(&cut(&barrier.hook, 24)))?;
        }
        Ok(())
    }

    /// The whole picture for those who do not see it.
    fn in_words(&self) -> String {
        let mut words =
            format!("Begun {}, {}.", self.timeline.started, count(self.timeline.members.len() as u64, "member"));
        for barrier in &self.timeline.barriers {
            words += &format!(" The barrier {} opened at {}.", barrier.hook, duration(barrier.opened));
        }
        if let Some(capture) = self.timeline.capture {
            words += &format!(" {}.", said("The members' files were taken", capture));
        }
        for member in &self.timeline.members {
            let spans = member.spans().into_iter().filter_map(|(phase, span)| Some(said(phase, span?)));
            words += &format!(" {}: {}.", member.id, spans.collect::<Vec<_>>().join("; "));
        }
        words
    }

    fn x(&self, micros: u64) -> f64 {
        NAMES + BARS * micros as f64 / self.total as f64
    }

    fn width(&self, span: Span) -> f64 {
        (self.x(span.end) - self.x(span.begin)).max(MIN_BAR)
    }
}

/// `frozen for 84 ms, from 12 ms to 96 ms`.
fn said(what: &str, span: Span) -> String {
    format!("{what} for {}, from {} to {}", duration(span.micros()), duration(span.begin), duration(span.end))
}

/// The distance of the scale's marks: 1, 2 or 5 of some power of ten, so that there are at most ten.
fn step(end: u64) -> u64 {
    let mut power = 1_u64;
    loop {
        for step in [1, 2, 5].map(|factor| power.saturating_mul(factor)) {
            if end / step < 10 {
                return step;
            }
        }
        power = power.saturating_mul(10);
    }
}

/// A time with its unit, three digits or more where they are known.
pub fn duration(micros: u64) -> String {
    let in_unit = |unit: f64, name: &str| {
        let text = format!("{:.2}", micros as f64 / unit);
        format!("{} {name}", text.trim_end_matches('0').trim_end_matches('.'))
    };
    match micros {
        0 => "0".to_owned(),
        1..1_000 => format!("{micros} µs"),
        1_000..1_000_000 => in_unit(1_000.0, "ms"),
        _ => in_unit(1_000_000.0, "s"),
    }
}

/// At most so many characters.
fn cut(text: &str, chars: usize) -> String {
    if text.chars().count() <= chars {
        return text.to_owned();
    }
    text.chars().take(chars.saturating_sub(1)).chain(['…']).collect()
}

/// Text in XML. Characters that XML cannot hold at all are replaced.
struct Text<'a>(&'a str);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c {
            '&' => f.write_str("&amp;"),
            '<' => f.write_str("&lt;"),
            '>' => f.write_str("&gt;"),
            '"' => f.write_str("&quot;"),
            '\'' => f.write_str("&#39;"),
            '\t' => f.write_char(' '),
            '\u{0}'..='\u{1f}' | '\u{7f}'..='\u{9f}' | '\u{fffe}' | '\u{ffff}' => f.write_char('\u{fffd}'),
            c => f.write_char(c),
        })
    }
}

#[cfg(test)]
mod tests {
    use image_format::BarrierTime;

    use super::*;

    fn sample() -> Timeline {
        let span = |begin, end| Some(Span { begin, end });
        let member = |id: &str, late: u64| MemberTimeline {
            waited: span(2_000 + late, 9_000),
            frozen: span(9_500, 84_000 + late),
            dumped: span(12_000, 70_000 + late),
            packed: span(90_000, 200_000 + 10 * late),
            sent: span(95_000, 260_000 + 20 * late),
            bytes_sent: 1_234_567 + late,
            ..MemberTimeline::new(id.parse().unwrap())
        };
        let barrier = |hook: &str, opened| BarrierTime { hook: hook.to_owned(), opened };
        Timeline {
            started: "2026-02-03T04:05:06.789Z".to_owned(),
            barriers: vec![barrier("pre-dump", 4_000), barrier("network-lock", 9_500), barrier("post-dump", 75_000)],
            capture: span(75_000, 83_000),
            members: vec![
                member("consumer", 0),
                member("a-member-with-a-name-that-is-too-long-for-its-column", 4_000),
                MemberTimeline::new("unknown".parse().unwrap()),
            ],
        }
    }

    #[test]
    fn a_picture() {
        insta::assert_snapshot!(svg(&sample(), "ledger, epoch 7"));
    }

    #[test]
    fn whatever_it_is_told_it_is_one_document() {
        let evil = "</title><script>alert('&')</script>\"\u{0}\u{1b}[31m\u{ffff}";
        let mut timeline = sample();
        timeline.started = evil.to_owned();
        timeline.barriers[0].hook = evil.to_owned();
        let picture = svg(&timeline, evil);
        assert!(!picture.contains("<script"));
        assert!(!picture.chars().any(|c| (c.is_control() && c != '\n') || c == '\u{ffff}'));
        well_formed(&picture);
        well_formed(&svg(&Timeline::default(), ""));
        timeline.capture = Some(Span { begin: 0, end: u64::MAX });
        timeline.members[0].sent = Some(Span { begin: 9, end: 3 });
        well_formed(&svg(&timeline, "extremes"));
    }

    /// Every element that is opened is closed in turn, and every attribute is quoted: enough XML for what is drawn here.
    fn well_formed(picture: &str) {
        let mut open = Vec::new();
        let mut rest = picture;
        while let Some((text, tag)) = rest.split_once('<') {
            assert!(!text.contains('>') || open.last() == Some(&"style"), "{text}");
            let (tag, after) = tag.split_once('>').unwrap();
            rest = after;
            let name = tag.trim_matches('/').split(' ').next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else {
                let attributes = tag.trim_end_matches('/').split_once(' ').map_or("", |parts| parts.1);
                assert_eq!(attributes.matches('"').count() % 2, 0, "{tag}");
                assert_eq!(attributes.matches('"').count(), 2 * attributes.matches('=').count(), "{tag}");
                if !tag.ends_with('/') {
                    open.push(name);
                }
            }
        }
        assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
        let entities = picture
            .split('&')
            .skip(1)
            .all(|text| ["amp;", "lt;", "gt;", "quot;", "#39;"].iter().any(|entity| text.starts_with(entity)));
        assert!(entities && !picture.contains("NaN") && !picture.contains("inf\""));
    }

    #[test]
    fn scales_have_few_marks() {
        for end in [0, 1, 9, 10, 19, 20, 999, 123_456, u64::MAX / 2, u64::MAX] {
            assert!(end / step(end) < 10 || step(end) == u64::MAX, "{end}");
        }
        let times = [0, 7, 1_500, 84_000, 1_000_000, 61_250_000].map(duration);
        assert_eq!(times, ["0", "7 µs", "1.5 ms", "84 ms", "1 s", "61.25 s"]);
    }
}
