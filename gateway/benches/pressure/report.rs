//! What was found, beside what is to be reached.

use crate::client::Void;

/// A row of the table in which the figures are compared with what is to be reached, and aimed at.
pub(crate) struct Row {
    /// Its number in the table of targets, and a letter where one number has several.
    pub(crate) id: &'static str,
    pub(crate) measure: String,
    pub(crate) unit: &'static str,
    pub(crate) reach: Bound,
    /// Where there is more to be had than what is to be reached.
    pub(crate) aim: Option<f64>,
    pub(crate) figure: Result<f64, Void>,
}

/// Which side of a bound is good.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Bound {
    AtMost(f64),
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: f64) -> bool {
        match self {
            Self::AtMost(most) => figure <= most,
            Self::AtLeast(least) => figure >= least,
        }
    }

    fn with(self, other: f64) -> Self {
        match self {
            Self::AtMost(_) => Self::AtMost(other),
            Self::AtLeast(_) => Self::AtLeast(other),
        }
    }

    fn show(self, unit: &str) -> String {
        match self {
            Self::AtMost(most) => format!("≤ {}", number(most, unit)),
            Self::AtLeast(least) => format!("≥ {}", number(least, unit)),
        }
    }
}

fn number(n: f64, unit: &str) -> String {
    let n = if n >= 1_000.0 {
        format!("{n:.0}")
    } else if n >= 100.0 {
        format!("{n:.1}")
    } else {
        format!("{n:.2}")
    };
    if unit.is_empty() { n } else { format!("{n} {unit}") }
}

/// Everything that a run has found.
pub(crate) struct Report {
    /// Whether figures are shown, or only that they could be had.
    shown: bool,
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// Nothing yet.
    pub(crate) fn new(shown: bool) -> Self {
        Self {
            shown,
            rows: vec![],
            notes: vec![],
        }
    }

    pub(crate) fn row(&mut self, row: Row) {
        if self.shown || row.figure.is_err() {
            say(&format!("  {}", row.line()));
        }
        self.rows.push(row);
    }

    /// What is not compared with anything.
    pub(crate) fn note(&mut self, note: String) {
        if self.shown {
            say(&format!("  {note}"));
        }
        self.notes.push(note);
    }

    /// The runs that do not count.
    pub(crate) fn voids(&self) -> usize {
        self.rows.iter().filter(|row| row.figure.is_err()).count()
    }

    /// The table, as Markdown.
    pub(crate) fn print(&mut self) {
        self.rows.sort_by_key(|row| row.id);
        if !self.shown {
            return;
        }
        let cells: Vec<[String; 6]> = std::iter::once(["#", "measure", "figure", "reach", "aim", ""].map(String::from))
            .chain(std::iter::once([(); 6].map(|()| "---".to_owned())))
            .chain(self.rows.iter().map(Row::cells))
            .collect();
        let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..6).map(width).collect();
        for row in &cells {
            let padded = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            say(&format!("| {} |", padded.collect::<Vec<_>>().join(" | ")));
        }
        for note in &self.notes {
            say(note);
        }
    }
}

impl Row {
    fn aim(&self) -> Option<Bound> {
        self.aim.map(|aim| self.reach.with(aim))
    }

    fn cells(&self) -> [String; 6] {
        let (figure, verdict) = match &self.figure {
            Ok(figure) => (
                number(*figure, self.unit),
                match (self.aim(), self.reach) {
                    (Some(aim), _) if aim.holds(*figure) => "aim".into(),
                    (_, reach) if reach.holds(*figure) => "reach".into(),
                    _ => "missed".into(),
                },
            ),
            Err(Void(why)) => ("void".into(), why.clone()),
        };
        [
            self.id.into(),
            self.measure.clone(),
            figure,
            self.reach.show(self.unit),
            self.aim().map_or_else(String::new, |aim| aim.show(self.unit)),
            verdict,
        ]
    }

    fn line(&self) -> String {
        let [id, measure, figure, reach, aim, verdict] = self.cells();
        let aim = if aim.is_empty() { aim } else { format!(", aim {aim}") };
        format!("#{id} {measure}: {figure} (reach {reach}{aim}): {verdict}")
    }
}

/// The middle one; of an even number, the lower of the two. Not of nothing.
pub(crate) fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all[(all.len() - 1) / 2]
}

/// The one that so many in a hundred are not above, of sorted ones.
pub(crate) fn percentile(sorted: &[u32], percent: usize) -> u32 {
    sorted
        .get((sorted.len() * percent).div_ceil(100).saturating_sub(1))
        .copied()
        .unwrap_or(0)
}

#[allow(clippy::print_stdout, reason = "this is what it is run for")]
pub(crate) fn say(line: &str) {
    println!("{line}");
}
