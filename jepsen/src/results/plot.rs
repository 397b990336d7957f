//! Plots over the time of a run, as inline SVG: lines over shaded faults.

use std::fmt::Write;

use crate::history::faults::Fault;

const WIDTH: f64 = 960.0;
const HEIGHT: f64 = 220.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 24.0;
const TOP: f64 = 10.0;

/// A line of a plot: its name, its class in the style sheet, and a value for each bucket or nothing.
#[derive(Debug)]
pub struct Line<'a> {
    /// In the legend.
    pub name: &'a str,
    /// `ok`, `fail`, `info`, `p50`, `p99` or `max`.
    pub class: &'a str,
    /// In order of time.
    pub values: Vec<Option<f64>>,
}

/// How values go up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// From zero.
    Linear,
    /// By decades.
    Log,
}

/// Draws lines over the faults of a run of `end` nanoseconds. `unit` names the values.
pub fn svg(title: &str, unit: &str, lines: &[Line<'_>], faults: &[Fault], end: u64, scale: Scale) -> String {
    let values = || lines.iter().flat_map(|line| line.values.iter().flatten().copied());
    let greatest = values().fold(1.0_f64, f64::max);
    let least = values().filter(|value| *value > 0.0).fold(greatest, f64::min);
    let axis = match scale {
        Scale::Linear => Axis { low: 0.0, high: greatest * 1.05, scale },
        Scale::Log => {
            Axis { low: least.log10().floor(), high: greatest.log10().ceil().max(least.log10().floor() + 1.0), scale }
        }
    };
    let seconds = (end as f64 / 1e9).max(1e-9);
    let mut svg = format!(r#"<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">"#);
    shade(&mut svg, faults, end);
    for (value, y) in axis.ticks() {
        let label = if value >= 10.0 || value == 0.0 { format!("{value:.0}") } else { format!("{value}") };
        let _ = write!(
            svg,
            r#"<path class="grid" d="M{LEFT} {y:.1}H{WIDTH}"/><text class="tick" x="{:.1}" y="{:.1}" text-anchor="end">{label}</text>"#,
            LEFT - 6.0,
            y + 4.0
        );
    }
    let step = nice(seconds / 8.0);
    for k in 0..=(seconds / step) as u32 {
        let at = f64::from(k) * step;
        let x = LEFT + at / seconds * (WIDTH - LEFT);
        let anchor = match x {
            x if x < LEFT + 20.0 => "start",
            x if x > WIDTH - 20.0 => "end",
            _ => "middle",
        };
        let _ = write!(
            svg,
            r#"<text class="tick" x="{x:.1}" y="{:.1}" text-anchor="{anchor}">{at} s</text>"#,
            HEIGHT - 6.0
        );
    }
    for line in lines {
        let _ = write!(svg, r#"<path class="line {}" d="{}"/>"#, line.class, path(line, &axis));
    }
    svg.push_str("</svg>");
    let legend: String =
        lines.iter().map(|line| format!(r#"<span class="key {}">{}</span>"#, line.class, line.name)).collect();
    format!(r#"<figure><figcaption>{title} <span class="unit">({unit})</span> {legend}</figcaption>{svg}</figure>"#)
}

struct Axis {
    low: f64,
    high: f64,
    scale: Scale,
}

impl Axis {
    fn y(&self, value: f64) -> f64 {
        let value = if self.scale == Scale::Log { value.max(1e-12).log10() } else { value };
        let part = ((value - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        TOP + (1.0 - part) * (HEIGHT - TOP - BOTTOM)
    }

    fn ticks(&self) -> Vec<(f64, f64)> {
        let values: Vec<f64> = match self.scale {
            Scale::Linear => {
                let step = nice(self.high / 4.0);
                (0..=(self.high / step) as u32).map(|k| f64::from(k) * step).collect()
            }
            Scale::Log => (self.low as i32..=self.high as i32).map(|decade| 10_f64.powi(decade)).collect(),
        };
        values.into_iter().map(|value| (value, self.y(value))).collect()
    }
}

/// 1, 2 or 5 times a power of ten, not below what is asked for.
fn nice(at_least: f64) -> f64 {
    let decade = 10_f64.powf(at_least.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * decade).find(|step| *step >= at_least).unwrap_or(decade)
}

/// A gap in the values is a gap in the line; a value alone is a dot.
fn path(line: &Line<'_>, axis: &Axis) -> String {
    let mut path = String::new();
    let mut pen_down = false;
    for (k, value) in line.values.iter().enumerate() {
        let Some(value) = value else {
            pen_down = false;
            continue;
        };
        let x = LEFT + (k as f64 + 0.5) / line.values.len() as f64 * (WIDTH - LEFT);
        let y = axis.y(*value);
        let _ = if pen_down { write!(path, "L{x:.1} {y:.1}") } else { write!(path, "M{x:.1} {y:.1}h0.1") };
        pen_down = true;
    }
    path
}

fn shade(svg: &mut String, faults: &[Fault], end: u64) {
    let x = |time: u64| LEFT + time as f64 / end.max(1) as f64 * (WIDTH - LEFT);
    for fault in faults.iter().filter(|fault| fault.skipped.is_none()) {
        let (from, to) = (x(fault.start), x(fault.end.unwrap_or(end)));
        let name = super::report::escape(&fault.name);
        let class = if fault.majority { "fault majority" } else { "fault" };
        let _ = write!(
            svg,
            r#"<rect class="{class}" x="{from:.1}" y="{TOP}" width="{:.1}" height="{:.1}"><title>{name}, {:.2} s to {:.2} s</title></rect>"#,
            (to - from).max(1.0),
            HEIGHT - TOP - BOTTOM,
            fault.start as f64 / 1e9,
            fault.end.unwrap_or(end) as f64 / 1e9
        );
        // Where there is room; the others have their titles.
        if to - from > 7.0 * name.len() as f64 {
            let _ = write!(svg, r#"<text class="tick" x="{:.1}" y="{:.1}">{name}</text>"#, from + 3.0, TOP + 11.0);
        }
    }
}
