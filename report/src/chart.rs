//! Charts as SVG. They are drawn in the light palette; the page's style sheet gives each of its
//! colours another value in the dark, by attribute.

use std::ops::Range;

use plotters::{
    coord::{Shift, types::RangedCoordf64},
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::error::ReportError;

/// The palette: names as in `page/style.css`, which has to list them all.
pub mod palette {
    use plotters::style::RGBColor;

    /// Text.
    pub const INK: RGBColor = RGBColor(0x1B, 0x1F, 0x24);
    /// Labels of axes.
    pub const MUTED: RGBColor = RGBColor(0x5A, 0x63, 0x70);
    /// Grid lines.
    pub const GRID: RGBColor = RGBColor(0xE4, 0xE7, 0xEB);
    /// What is kept, or yet to be learnt.
    pub const KEPT: RGBColor = RGBColor(0x1F, 0x5F, 0xBF);
    /// What is dropped: the anchors.
    pub const DROPPED: RGBColor = RGBColor(0xC2, 0x4E, 0x0E);
    /// Everything together.
    pub const ALL: RGBColor = RGBColor(0x6B, 0x72, 0x80);
    /// What the reader should look at.
    pub const MARK: RGBColor = RGBColor(0xA2, 0x1C, 0x5B);
}

/// Size of a drawing, CSS pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Its width.
    pub width: u32,
    /// Its height.
    pub height: u32,
}

impl Size {
    /// In a column of a wide window, and for a file of its own.
    pub const WIDE: Self = Self {
        width: 540,
        height: 290,
    };
    /// On a telephone.
    pub const NARROW: Self = Self {
        width: 340,
        height: 250,
    };
}

/// One thing that is drawn.
#[derive(Debug, Clone, PartialEq)]
pub enum Mark {
    /// A line through points.
    Line(Vec<(f64, f64)>),
    /// The same, dashed.
    Dashed(Vec<(f64, f64)>),
    /// A line with a dot at every point.
    Dotted(Vec<(f64, f64)>),
    /// Dots alone.
    Dots(Vec<(f64, f64)>),
    /// Between two curves: x, low, high.
    Band(Vec<(f64, f64, f64)>),
    /// Intervals: x, low, high.
    Whiskers(Vec<(f64, f64, f64)>),
    /// Rectangles from `low` to `high`: left, right, low, high.
    Bars(Vec<(f64, f64, f64, f64)>),
}

/// Marks of one colour under one name.
#[derive(Debug, Clone, PartialEq)]
pub struct Series {
    /// In the legend; empty: not in it.
    pub name: String,
    /// One of [`palette`].
    pub colour: RGBColor,
    /// What is drawn, first below.
    pub marks: Vec<Mark>,
}

impl Series {
    /// A series.
    pub fn new(name: &str, colour: RGBColor, marks: Vec<Mark>) -> Self {
        Self {
            name: name.to_owned(),
            colour,
            marks,
        }
    }
}

/// How numbers stand at an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// As short as they are exact.
    Number,
    /// Shares, as per cent.
    Share,
    /// Places of [`signed_log`], labelled with the numbers they stand for.
    SignedLog,
}

/// Up to this size numbers stand evenly on a [`Unit::SignedLog`] axis.
pub const LINEAR: f64 = 1e-3;

/// Where `value` stands on an axis for numbers of both signs and many magnitudes: evenly within
/// +-[`LINEAR`], which is at +-1, and one further for every factor of ten beyond.
pub fn signed_log(value: f64) -> f64 {
    match value.abs() / LINEAR {
        small if small <= 1.0 => small * value.signum(),
        large => (1.0 + large.log10()) * value.signum(),
    }
}

/// The number at `place`: the inverse of [`signed_log`].
pub fn from_signed_log(place: f64) -> f64 {
    let size = match place.abs() {
        near if near <= 1.0 => near * LINEAR,
        far => LINEAR * 10_f64.powf(far - 1.0),
    };
    size * place.signum()
}

impl Unit {
    fn label(self, value: f64) -> String {
        // -0 is no number that people know.
        let value = if value.abs() < 1e-12 { 0.0 } else { value };
        match self {
            Self::Share => format!("{:.0} %", 100.0 * value),
            Self::SignedLog => Self::Number.label(from_signed_log(value)),
            Self::Number if value.abs() >= 1e5 || (value != 0.0 && value.abs() < 0.99e-3) => {
                format!("{value:.0e}")
            }
            Self::Number => {
                let text = format!("{value:.3}");
                text.trim_end_matches('0').trim_end_matches('.').to_owned()
            }
        }
    }
}

/// A chart with two axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Chart {
    /// Under the horizontal axis.
    pub x_label: String,
    /// Over the vertical axis.
    pub y_label: String,
    /// Its numbers.
    pub x_unit: Unit,
    /// Its numbers.
    pub y_unit: Unit,
    /// What has to be in sight on the vertical axis besides the marks.
    pub y_include: Vec<f64>,
    /// A vertical line with a word to it.
    pub rule: Option<(f64, String)>,
    /// What is drawn, first below.
    pub series: Vec<Series>,
}

impl Default for Chart {
    fn default() -> Self {
        Self {
            x_label: String::new(),
            y_label: String::new(),
            x_unit: Unit::Number,
            y_unit: Unit::Number,
            y_include: Vec::new(),
            rule: None,
            series: Vec::new(),
        }
    }
}

type Plane<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Cartesian2d<RangedCoordf64, RangedCoordf64>>;

/// Pixels from the top of the highest letter to the bottom of the lowest. The backend writes 0.806 of
/// it as the font's size.
const FONT: f64 = 15.0;

fn font(colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", FONT).into_font().color(&colour)
}

impl Chart {
    /// The chart as an SVG element of `size`. Points that are not finite are left out.
    ///
    /// # Errors
    /// When there is no point to be drawn, or the drawing fails.
    pub fn svg(&self, size: Size) -> Result<String, ReportError> {
        let (x, y) = self.ranges().ok_or(ReportError::EmptyChart)?;
        let mut out = String::new();
        {
            let backend = SVGBackend::with_string(&mut out, (size.width, size.height));
            let area = backend.into_drawing_area();
            self.draw(&area, x, y, size).map_err(ReportError::chart)?;
            area.present().map_err(ReportError::chart)?;
        }
        // The page names it; on its own it is a file like any other.
        Ok(out.replacen("<svg ", "<svg role=\"img\" aria-hidden=\"true\" ", 1))
    }

    fn draw<'b>(
        &self,
        area: &DrawingArea<SVGBackend<'b>, Shift>,
        x: Range<f64>,
        y: Range<f64>,
        size: Size,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let legend = self.legend(area, size)?;
        let area = area.margin(legend, 0, 0, 0);
        area.draw_text(&self.y_label, &font(palette::MUTED), (2, 0))?;
        let mut plane: Plane<'_, 'b> = ChartBuilder::on(&area)
            .margin_top(20)
            .margin_right(22)
            .x_label_area_size(38)
            .y_label_area_size(46)
            .build_cartesian_2d(x, y.clone())?;
        let ticks = (size.width / 85) as usize;
        plane
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(palette::GRID.stroke_width(1))
            .axis_style(palette::GRID)
            .x_desc(self.x_label.as_str())
            .axis_desc_style(font(palette::MUTED))
            .label_style(font(palette::MUTED))
            .x_labels(ticks)
            .y_labels(6)
            .x_label_formatter(&|value| self.x_unit.label(*value))
            .y_label_formatter(&|value| self.y_unit.label(*value))
            .draw()?;
        if let Some((at, word)) = &self.rule {
            self.draw_rule(&mut plane, *at, word, &y)?;
        }
        for series in &self.series {
            for mark in &series.marks {
                draw_mark(&mut plane, mark, series.colour)?;
            }
        }
        Ok(())
    }

    /// Draws the names of the series, as many in a line as fit; says how high it is.
    fn legend(
        &self,
        area: &DrawingArea<SVGBackend<'_>, Shift>,
        size: Size,
    ) -> Result<i32, DrawingAreaErrorKind<std::io::Error>> {
        const LINE: i32 = 20;
        let (mut at, mut line) = (2, 0);
        let named = || self.series.iter().filter(|series| !series.name.is_empty());
        if named().count() == 0 {
            return Ok(0);
        }
        for series in named() {
            // What a letter of this size takes, about; the backend knows no fonts.
            let width = 30 + (series.name.chars().count() as f64 * FONT * 0.45) as i32;
            if at > 2 && at + width > size.width as i32 {
                (at, line) = (2, line + 1);
            }
            let top = line * LINE;
            area.draw(&Rectangle::new(
                [(at, top + 4), (at + 12, top + 12)],
                series.colour.filled(),
            ))?;
            area.draw_text(&series.name, &font(palette::INK), (at + 18, top))?;
            at += width;
        }
        Ok((line + 1) * LINE + 6)
    }

    fn draw_rule(
        &self,
        plane: &mut Plane<'_, '_>,
        at: f64,
        word: &str,
        y: &Range<f64>,
    ) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
        let x = plane.x_range();
        let line = [(at, y.start), (at, y.end)];
        let style = palette::MARK.stroke_width(1);
        plane.draw_series(DashedLineSeries::new(line, 4, 4, style))?;
        // On the side where there is room.
        let right = at < x.start + 0.6 * (x.end - x.start);
        let hpos = if right { HPos::Left } else { HPos::Right };
        let style = font(palette::MARK).pos(Pos::new(hpos, VPos::Top));
        let offset = if right { 5 } else { -5 };
        let element =
            EmptyElement::at((at, y.end)) + Text::new(word.to_owned(), (offset, 0), style);
        plane.draw_series(std::iter::once(element))?;
        Ok(())
    }

    /// What the axes have to show.
    fn ranges(&self) -> Option<(Range<f64>, Range<f64>)> {
        let (mut x, mut y) = (Extent::default(), Extent::default());
        for mark in self.series.iter().flat_map(|series| &series.marks) {
            match mark {
                Mark::Line(points)
                | Mark::Dashed(points)
                | Mark::Dotted(points)
                | Mark::Dots(points) => {
                    for point in points.iter().filter(|p| p.0.is_finite() && p.1.is_finite()) {
                        x.add(point.0);
                        y.add(point.1);
                    }
                }
                Mark::Band(points) | Mark::Whiskers(points) => {
                    for (at, low, high) in points {
                        x.add(*at);
                        y.add(*low);
                        y.add(*high);
                    }
                }
                Mark::Bars(bars) => {
                    for (left, right, low, high) in bars {
                        x.add(*left);
                        x.add(*right);
                        y.add(*low);
                        y.add(*high);
                    }
                }
            }
        }
        if y.is_empty() {
            return None;
        }
        self.y_include.iter().for_each(|value| y.add(*value));
        let touching = self.y_include.contains(&y.low);
        let (x, mut y) = (x.range()?, y.range()?);
        let room = 0.06 * (y.end - y.start);
        y.end += room;
        if !touching {
            y.start -= room;
        }
        Some((x, y))
    }
}

fn draw_mark(
    plane: &mut Plane<'_, '_>,
    mark: &Mark,
    colour: RGBColor,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    let finite = |points: &[(f64, f64)]| -> Vec<(f64, f64)> {
        let points = points.iter().copied();
        points
            .filter(|p| p.0.is_finite() && p.1.is_finite())
            .collect()
    };
    let dots = |points: Vec<(f64, f64)>, radius| {
        points
            .into_iter()
            .map(move |point| Circle::new(point, radius, colour.filled()))
    };
    let line = colour.stroke_width(2);
    match mark {
        Mark::Line(points) => {
            plane.draw_series(LineSeries::new(finite(points), line))?;
        }
        Mark::Dashed(points) => {
            let points = finite(points);
            plane.draw_series(DashedLineSeries::new(points, 5, 4, line))?;
        }
        Mark::Dotted(points) => {
            plane.draw_series(LineSeries::new(finite(points), line))?;
            plane.draw_series(dots(finite(points), 3))?;
        }
        Mark::Dots(points) => {
            let style = colour.mix(0.55).filled();
            let points = finite(points).into_iter();
            plane.draw_series(points.map(|point| Circle::new(point, 2, style)))?;
        }
        Mark::Band(points) => {
            let up = points.iter().map(|(x, low, _)| (*x, *low));
            let down = points.iter().rev().map(|(x, _, high)| (*x, *high));
            let outline: Vec<(f64, f64)> = up.chain(down).collect();
            let polygon = Polygon::new(outline, colour.mix(0.16));
            plane.draw_series(std::iter::once(polygon))?;
        }
        Mark::Whiskers(points) => {
            let whisker = |(x, low, high): &(f64, f64, f64)| {
                PathElement::new(
                    vec![(*x, *low), (*x, *high)],
                    colour.mix(0.55).stroke_width(3),
                )
            };
            plane.draw_series(points.iter().map(whisker))?;
        }
        Mark::Bars(bars) => {
            let bar = |(left, right, low, high): &(f64, f64, f64, f64)| {
                Rectangle::new([(*left, *low), (*right, *high)], colour.mix(0.85).filled())
            };
            plane.draw_series(bars.iter().map(bar))?;
        }
    }
    Ok(())
}

/// Lowest and highest of what was added.
#[derive(Debug)]
struct Extent {
    low: f64,
    high: f64,
}

impl Default for Extent {
    fn default() -> Self {
        Self {
            low: f64::INFINITY,
            high: f64::NEG_INFINITY,
        }
    }
}

impl Extent {
    fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.low = self.low.min(value);
            self.high = self.high.max(value);
        }
    }

    fn is_empty(&self) -> bool {
        self.low > self.high
    }

    /// Never empty, so that there is a scale.
    fn range(&self) -> Option<Range<f64>> {
        if self.is_empty() {
            return None;
        }
        let widen = match self.high - self.low {
            wide if wide > 0.0 => 0.0,
            _ => 0.5 * self.low.abs().max(1e-3),
        };
        Some(self.low - widen..self.high + widen)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chart(marks: Vec<Mark>) -> Chart {
        Chart {
            series: vec![Series::new("<b>&", palette::KEPT, marks)],
            rule: Some((1.0, "bottleneck".into())),
            ..Chart::default()
        }
    }

    #[test]
    fn a_chart_is_svg_with_escaped_names_in_the_palette() {
        let svg = chart(vec![
            Mark::Dotted(vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 3.0)]),
            Mark::Band(vec![(0.0, 0.5, 1.5), (2.0, 2.0, 4.0)]),
        ])
        .svg(Size::WIDE)
        .unwrap();
        assert!(svg.starts_with("<svg") && svg.contains("bottleneck"));
        assert!(svg.contains("&lt;b&gt;&amp;") && !svg.contains("<b>"));
        assert!(!svg.contains("NaN"), "{svg}");
        assert!(svg.contains("#1F5FBF"));
    }

    #[test]
    fn nothing_and_a_single_point_are_no_trouble() {
        let nothing = chart(vec![Mark::Line(vec![(f64::NAN, 1.0)])]);
        assert!(matches!(
            nothing.svg(Size::WIDE),
            Err(ReportError::EmptyChart)
        ));
        for value in [0.0, -3.0, 1e9] {
            chart(vec![Mark::Dots(vec![(1.0, value)])])
                .svg(Size::NARROW)
                .unwrap();
        }
    }

    #[test]
    fn numbers_are_short() {
        let shown = |value| Unit::Number.label(value);
        assert_eq!([shown(-0.0), shown(1.5), shown(40.0)], ["0", "1.5", "40"]);
        assert_eq!([shown(3e-4), shown(2e6)], ["3e-4", "2e6"]);
        assert_eq!(Unit::Share.label(0.25), "25 %");
        for value in [-20.0, -0.1, -5e-4, 0.0, 1e-3, 3.0] {
            assert!((from_signed_log(signed_log(value)) - value).abs() < 1e-12);
        }
        assert_eq!(Unit::SignedLog.label(-4.0), "-1");
    }
}
