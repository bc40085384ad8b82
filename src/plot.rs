//! Figures: data in, a picture as SVG out. Nothing here knows what is plotted.
//!
//! A figure has to be readable in grey, so lines differ by their markers and bars by their shade; and it has to show
//! how sure its numbers are, so every value may have a spread, drawn as an error bar.

use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;
use std::error::Error;
use std::f64::consts::TAU;

/// A picture's width and height, in pixels of the SVG.
const PICTURE: (u32, u32) = (1_000, 420);
/// The parts of the width that the legends of lines and of bars take.
const LINES_LEGEND_WIDTH: u32 = 240;
const BARS_LEGEND_WIDTH: u32 = 180;
/// Between two entries of the legend.
const LEGEND_STEP: i32 = 24;
/// From a marker's middle to its corners.
const MARKER_RADIUS: f64 = 6.0;
/// From the middle of an error bar's end to its side.
const ERROR_BAR_END: i32 = 4;
/// Pixels of a dash, and between two.
const DASHES: (u32, u32) = (7, 5);
const FONT: &str = "sans-serif";
const LABEL_SIZE: i32 = 12;
/// Of labels beside each other; they are no smaller, and a letter is about so wide, as a part of their size.
const LEAST_LABEL_SIZE: i32 = 7;
const LETTER_WIDTH: f64 = 0.52;
const MARGIN: u32 = 12;
/// Of the labels beside the vertical axis, with its description.
const Y_LABELS_WIDTH: u32 = 72;
const TITLE_SIZE: i32 = 18;
/// The height of a row, and of what is above and below all rows.
const ROW_HEIGHT: u32 = 24;
const ROWS_FRAME_HEIGHT: u32 = 110;
/// Corners and rotation, in turns, of the markers. The first is round enough to be a circle.
const MARKERS: [(u32, f64); 6] = [(24, 0.0), (4, 0.125), (3, -0.25), (4, 0.0), (3, 0.25), (5, -0.25)];
/// Okabe and Ito's colours (2008), which people who see red and green alike tell apart; without the pale yellow.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
/// Colours of parts: neighbours differ in grey, too. Of Tol's "muted" and "light" schemes (2021).
const PARTS: [RGBColor; 10] = [
    RGBColor(51, 34, 136),
    RGBColor(136, 204, 238),
    RGBColor(17, 119, 51),
    RGBColor(238, 221, 136),
    RGBColor(136, 34, 85),
    RGBColor(255, 170, 187),
    RGBColor(0, 90, 140),
    RGBColor(221, 221, 221),
    RGBColor(204, 102, 51),
    RGBColor(90, 90, 90),
];
/// The palest and the darkest bar.
const SHADES: [RGBColor; 2] = [RGBColor(198, 219, 239), RGBColor(33, 113, 181)];

/// A value with its spread.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Value {
    /// What is drawn as the point or the bar.
    pub middle: f64,
    /// The lower end of the error bar.
    pub low: f64,
    /// The upper end of the error bar.
    pub high: f64,
}

impl Value {
    /// A value without a spread.
    pub fn exact(middle: f64) -> Value {
        Value { middle, low: middle, high: middle }
    }
}

/// Lines over a number.
#[derive(Clone, Debug)]
pub struct Lines {
    /// What it shows.
    pub title: String,
    /// The horizontal axis, with its unit.
    pub x_axis: String,
    /// The vertical axis, with its unit. It begins at 0.
    pub y_axis: String,
    /// Each line: its name, and its values by where they are on the horizontal axis, in that order.
    pub series: Vec<(String, Vec<(f64, Value)>)>,
    /// What is shown beside the lines.
    pub marks: Vec<Mark>,
}

/// A value from elsewhere that a line is to be compared with.
#[derive(Clone, Debug)]
pub struct Mark {
    /// What the legend calls it.
    pub name: String,
    /// The number of the line, whose colour and marker it has, hollow.
    pub series: usize,
    /// Where on the horizontal axis; without it, it is drawn across, dashed.
    pub x: Option<f64>,
    /// The value.
    pub y: f64,
}

/// Lines of values that come in any order: a line for each name, in the order of the names' first values.
pub fn series(values: impl Iterator<Item = (String, f64, Value)>) -> Vec<(String, Vec<(f64, Value)>)> {
    let values: Vec<_> = values.collect();
    let line = |name: String| {
        let mut of_name: Vec<_> =
            values.iter().filter(|(of, ..)| *of == name).map(|(_, x, value)| (*x, *value)).collect();
        of_name.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        (name, of_name)
    };
    distinct(values.iter().map(|(name, ..)| name.clone())).into_iter().map(line).collect()
}

/// The name of a series of bars, and its bar in each group, where it has one.
pub type BarSeries = (String, Vec<Option<Value>>);

/// Bars of values that come in any order: the groups and the series, each in the order of its first value.
pub fn groups(values: impl Iterator<Item = (String, String, Value)>) -> (Vec<String>, Vec<BarSeries>) {
    let values: Vec<_> = values.collect();
    let groups = distinct(values.iter().map(|(group, ..)| group.clone()));
    let bars = |name: String| {
        let bar = |group: &String| {
            values.iter().find(|(of, series, _)| of == group && *series == name).map(|(.., value)| *value)
        };
        let bars = groups.iter().map(bar).collect();
        (name, bars)
    };
    let series = distinct(values.iter().map(|(_, name, _)| name.clone())).into_iter().map(bars).collect();
    (groups, series)
}

/// Each thing once, where it was first.
pub fn distinct<T: PartialEq>(things: impl Iterator<Item = T>) -> Vec<T> {
    let mut seen = Vec::new();
    for thing in things {
        if !seen.contains(&thing) {
            seen.push(thing);
        }
    }
    seen
}

/// Bars that stand side by side in groups.
#[derive(Clone, Debug)]
pub struct Bars {
    /// What it shows.
    pub title: String,
    /// What the groups are.
    pub x_axis: String,
    /// The vertical axis, with its unit. It begins at 0.
    pub y_axis: String,
    /// The names of the groups.
    pub groups: Vec<String>,
    /// Each series: its name, and its bar in each group, where it has one.
    pub series: Vec<BarSeries>,
}

/// Bars that are piled up on each other.
#[derive(Clone, Debug)]
pub struct Stacks {
    /// What it shows.
    pub title: String,
    /// What the piles are.
    pub x_axis: String,
    /// The vertical axis, with its unit. It begins at 0.
    pub y_axis: String,
    /// The names of the piles.
    pub groups: Vec<String>,
    /// Each part, from the bottom up: its name, and how high it is in each pile.
    pub parts: Vec<(String, Vec<f64>)>,
}

/// Bars that lie, to either side of 0, beneath each other in rows.
#[derive(Clone, Debug)]
pub struct Rows {
    /// What it shows.
    pub title: String,
    /// The horizontal axis, with its unit.
    pub x_axis: String,
    /// The names of the rows, from the top down.
    pub rows: Vec<String>,
    /// Each series: its name, and its bar in each row.
    pub series: Vec<(String, Vec<f64>)>,
}

impl Lines {
    /// The figure as an SVG document.
    pub fn to_svg(&self) -> String {
        picture(PICTURE.1, |area| self.draw(area))
    }

    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let (chart, legend) = area.split_horizontally(PICTURE.0 - LINES_LEGEND_WIDTH);
        let values = || self.series.iter().flat_map(|(_, values)| values);
        let mut ticks: Vec<f64> = values().map(|(x, _)| *x).collect();
        ticks.sort_by(f64::total_cmp);
        ticks.dedup();
        let end = ticks.last().copied().unwrap_or(1.0) * 1.05;
        let ticks = Ticks { end, at: ticks.into_iter().map(|x| (x, x.to_string())).collect() };
        let marked = self.marks.iter().map(|mark| mark.y);
        let y_end = top(values().map(|(_, value)| value.high).chain(marked));
        let mut chart = axes(&chart, &self.title, (&self.x_axis, ticks), (&self.y_axis, y_end))?;
        for (index, (name, values)) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            let line = values.iter().map(|(x, value)| (*x, value.middle));
            chart.draw_series(LineSeries::new(line.clone(), colour.stroke_width(2)))?;
            values.iter().try_for_each(|(x, value)| error_bar(&mut chart, *x, value, colour))?;
            chart.draw_series(
                line.map(|at| EmptyElement::at(at) + Polygon::new(marker(index, (0, 0)), colour)),
            )?;
            let y = legend_entry(&legend, index, name)?;
            legend.draw(&PathElement::new([(0, y), (36, y)], colour.stroke_width(2)))?;
            legend.draw(&Polygon::new(marker(index, (18, y)), colour))?;
        }
        for (Mark { name, series, x, y }, entry) in self.marks.iter().zip(self.series.len()..) {
            let colour = COLOURS[series % COLOURS.len()];
            let at = legend_entry(&legend, entry, name)?;
            let outline = |(x, y)| {
                let mut corners = marker(*series, (x, y));
                corners.push(corners[0]);
                PathElement::new(corners, colour.stroke_width(2))
            };
            match x {
                Some(x) => {
                    chart.draw_series([EmptyElement::at((*x, *y)) + outline((0, 0))])?;
                    legend.draw(&outline((18, at)))?;
                }
                None => {
                    let (dash, gap) = DASHES;
                    let across = [(0.0, *y), (end, *y)];
                    chart.draw_series(DashedLineSeries::new(across, dash, gap, colour.stroke_width(1)))?;
                    for left in (0..36).step_by((dash + gap) as usize) {
                        let right = (left + dash as i32).min(36);
                        legend.draw(&PathElement::new([(left, at), (right, at)], colour.stroke_width(1)))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Bars {
    /// The figure as an SVG document.
    pub fn to_svg(&self) -> String {
        picture(PICTURE.1, |area| self.draw(area))
    }

    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let (chart, legend) = area.split_horizontally(PICTURE.0 - BARS_LEGEND_WIDTH);
        let y_end = top(self.series.iter().flat_map(|(_, values)| values.iter().flatten()).map(|v| v.high));
        let ticks = Ticks::of_groups(self.groups.iter());
        let mut chart = axes(&chart, &self.title, (&self.x_axis, ticks), (&self.y_axis, y_end))?;
        // A fifth of a group's width is left free on the whole.
        let width = 0.8 / self.series.len() as f64;
        for (index, (name, values)) in self.series.iter().enumerate() {
            let shade = shade(index, self.series.len());
            let left = |group: usize| group as f64 + 0.1 + width * index as f64;
            let bars =
                || values.iter().enumerate().filter_map(|(group, value)| Some((left(group), (*value)?)));
            chart
                .draw_series(bars().map(|(x, value)| {
                    Rectangle::new([(x, 0.0), (x + width, value.middle)], shade.filled())
                }))?;
            bars().try_for_each(|(x, value)| error_bar(&mut chart, x + width / 2.0, &value, BLACK))?;
            legend_swatch(&legend, index, name, shade)?;
        }
        Ok(())
    }
}

impl Stacks {
    /// The figure as an SVG document.
    pub fn to_svg(&self) -> String {
        picture(PICTURE.1, |area| self.draw(area))
    }

    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let (chart, legend) = area.split_horizontally(PICTURE.0 - BARS_LEGEND_WIDTH);
        let mut tops = vec![0.0; self.groups.len()];
        let piled: Vec<Vec<(f64, f64)>> = self
            .parts
            .iter()
            .map(|(_, values)| {
                let pile = |(top, value): (&mut f64, &f64)| {
                    let bottom = *top;
                    *top += value;
                    (bottom, *top)
                };
                tops.iter_mut().zip(values).map(pile).collect()
            })
            .collect();
        let ticks = Ticks::of_groups(self.groups.iter());
        let y_end = top(tops.into_iter());
        let mut chart = axes(&chart, &self.title, (&self.x_axis, ticks), (&self.y_axis, y_end))?;
        for (index, ((name, _), spans)) in self.parts.iter().zip(&piled).enumerate() {
            let colour = PARTS[index % PARTS.len()];
            let bars = || {
                let shown = spans.iter().enumerate().filter(|(_, (bottom, top))| bottom < top);
                shown.map(|(group, (bottom, top))| {
                    [(group as f64 + 0.15, *bottom), (group as f64 + 0.85, *top)]
                })
            };
            chart.draw_series(bars().map(|bar| Rectangle::new(bar, colour.filled())))?;
            // So that parts differ where their colours do not.
            chart.draw_series(bars().map(|bar| Rectangle::new(bar, BLACK.stroke_width(1))))?;
            // The legend is in the order in which the parts lie on each other.
            legend_swatch(&legend, self.parts.len() - 1 - index, name, colour)?;
        }
        Ok(())
    }
}

impl Rows {
    /// The figure as an SVG document.
    pub fn to_svg(&self) -> String {
        picture(ROWS_FRAME_HEIGHT + ROW_HEIGHT * self.rows.len() as u32, |area| self.draw(area))
    }

    fn draw(&self, area: &Area<'_>) -> Result<(), Box<dyn Error>> {
        let (chart, legend) = area.split_horizontally(PICTURE.0 - BARS_LEGEND_WIDTH);
        let values = || self.series.iter().flat_map(|(_, values)| values).copied();
        let (least, most) = values().fold((0.0, 0.0), |(least, most), x| (x.min(least), x.max(most)));
        let margin = if least < most { 0.05 * (most - least) } else { 1.0 };
        // From the top down, while the axis counts from the bottom up.
        let ticks = Ticks::of_groups(self.rows.iter().rev());
        let mut chart = ChartBuilder::on(&chart)
            .caption(&self.title, (FONT, TITLE_SIZE))
            .margin(MARGIN)
            .x_label_area_size(48)
            .y_label_area_size(150)
            .build_cartesian_2d(least - margin..most + margin, ticks)?;
        chart
            .configure_mesh()
            .light_line_style(WHITE.mix(0.0))
            .disable_y_mesh()
            .x_desc(&self.x_axis)
            .label_style((FONT, LABEL_SIZE))
            .draw()?;
        let width = 0.7 / self.series.len() as f64;
        for (index, (name, values)) in self.series.iter().enumerate() {
            let shade = shade(index, self.series.len());
            chart.draw_series(values.iter().enumerate().map(|(row, value)| {
                let top = (self.rows.len() - row) as f64 - 0.15 - width * index as f64;
                Rectangle::new([(0.0, top - width), (*value, top)], shade.filled())
            }))?;
            legend_swatch(&legend, index, name, shade)?;
        }
        let rows = self.rows.len() as f64;
        chart.draw_series([PathElement::new([(0.0, 0.0), (0.0, rows)], BLACK)])?;
        Ok(())
    }
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Axes = Cartesian2d<Ticks, RangedCoordf64>;
type Chart<'a, 'b> = ChartContext<'a, SVGBackend<'b>, Axes>;

fn picture(height: u32, draw: impl FnOnce(&Area<'_>) -> Result<(), Box<dyn Error>>) -> String {
    let mut svg = String::new();
    let area = SVGBackend::with_string(&mut svg, (PICTURE.0, height)).into_drawing_area();
    area.fill(&WHITE)
        .map_err(Into::into)
        .and_then(|()| draw(&area))
        .and_then(|()| Ok(area.present()?))
        .expect("nothing fails that is drawn into memory");
    drop(area);
    svg
}

/// An axis from 0 to `end`, with a label at each of some places.
struct Ticks {
    end: f64,
    at: Vec<(f64, String)>,
}

impl Ticks {
    /// An axis of groups, each one wide, with its name in the middle.
    fn of_groups<'n>(names: impl ExactSizeIterator<Item = &'n String>) -> Ticks {
        let end = names.len().max(1) as f64;
        let at = names.enumerate().map(|(group, name)| (group as f64 + 0.5, name.clone())).collect();
        Ticks { end, at }
    }

    /// The size of labels that do not run into each other on an axis of so many pixels; no more than usual.
    fn label_size(&self, width: u32) -> i32 {
        let longest = self.at.iter().map(|(_, name)| name.chars().count()).max().unwrap_or_default();
        let room = f64::from(width) / (longest + 1) as f64 / self.at.len().max(1) as f64;
        ((room / LETTER_WIDTH) as i32).clamp(LEAST_LABEL_SIZE, LABEL_SIZE)
    }
}

impl Ranged for Ticks {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, (left, right): (i32, i32)) -> i32 {
        left + (f64::from(right - left) * value / self.end).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _hint: Hint) -> Vec<f64> {
        self.at.iter().map(|(x, _)| *x).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        0.0..self.end
    }
}

impl ValueFormatter<f64> for Ticks {
    fn format_ext(&self, value: &f64) -> String {
        self.at.iter().find(|(x, _)| x == value).map(|(_, name)| name.clone()).unwrap_or_default()
    }
}

/// Draws the title and the axes, each with what it shows.
fn axes<'a, 'b>(
    area: &'a Area<'b>,
    title: &str,
    (x_axis, ticks): (&str, Ticks),
    (y_axis, y_end): (&str, f64),
) -> Result<Chart<'a, 'b>, Box<dyn Error>> {
    let plot_width = area.dim_in_pixel().0.saturating_sub(Y_LABELS_WIDTH + 2 * MARGIN);
    let label_size = ticks.label_size(plot_width);
    let mut chart = ChartBuilder::on(area)
        .caption(title, (FONT, TITLE_SIZE))
        .margin(MARGIN)
        .x_label_area_size(48)
        .y_label_area_size(Y_LABELS_WIDTH)
        .build_cartesian_2d(ticks, 0.0..y_end)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE.mix(0.0))
        .disable_x_mesh()
        .x_desc(x_axis)
        .y_desc(y_axis)
        .label_style((FONT, LABEL_SIZE))
        .x_label_style((FONT, label_size))
        .axis_desc_style((FONT, LABEL_SIZE))
        .draw()?;
    Ok(chart)
}

/// Writes the name of the legend's entry number `index`, and answers how high its sign is to be.
fn legend_entry(legend: &Area<'_>, index: usize, name: &str) -> Result<i32, Box<dyn Error>> {
    let y = 50 + LEGEND_STEP * index as i32;
    legend.draw(&Text::new(name.to_owned(), (44, y - LABEL_SIZE / 3), (FONT, LABEL_SIZE)))?;
    Ok(y)
}

/// The legend's entry number `index` of a bar.
fn legend_swatch(
    legend: &Area<'_>,
    index: usize,
    name: &str,
    colour: RGBColor,
) -> Result<(), Box<dyn Error>> {
    let y = legend_entry(legend, index, name)?;
    legend.draw(&Rectangle::new([(8, y - 8), (28, y + 8)], colour.filled()))?;
    Ok(())
}

/// Where the vertical axis ends, so that all values are on it.
fn top(values: impl Iterator<Item = f64>) -> f64 {
    match values.fold(0.0, f64::max) {
        0.0 => 1.0,
        highest => highest * 1.08,
    }
}

/// The lines of an error bar; none where there is no spread.
fn error_bar(
    chart: &mut Chart<'_, '_>,
    x: f64,
    value: &Value,
    colour: RGBColor,
) -> Result<(), Box<dyn Error>> {
    if value.low < value.high {
        chart.draw_series([PathElement::new([(x, value.low), (x, value.high)], colour)])?;
        let end = |y| {
            EmptyElement::at((x, y)) + PathElement::new([(-ERROR_BAR_END, 0), (ERROR_BAR_END, 0)], colour)
        };
        chart.draw_series([end(value.low), end(value.high)])?;
    }
    Ok(())
}

/// The corners of a line's marker around its middle.
fn marker(index: usize, (x, y): (i32, i32)) -> Vec<(i32, i32)> {
    let (corners, turn) = MARKERS[index % MARKERS.len()];
    let corner = |number| {
        let (sin, cos) = (TAU * (turn + f64::from(number) / f64::from(corners))).sin_cos();
        (x + (MARKER_RADIUS * cos).round() as i32, y + (MARKER_RADIUS * sin).round() as i32)
    };
    (0..corners).map(corner).collect()
}

/// The shade of one series of several, from pale to dark.
fn shade(index: usize, of: usize) -> RGBColor {
    let part = index as f64 / of.saturating_sub(1).max(1) as f64;
    let [pale, dark] = SHADES;
    let mix =
        |pale: u8, dark: u8| (f64::from(pale) + part * (f64::from(dark) - f64::from(pale))).round() as u8;
    RGBColor(mix(pale.0, dark.0), mix(pale.1, dark.1), mix(pale.2, dark.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An SVG's texts, in the order of the document; an XML parser finds it well-formed.
    fn texts(svg: &str) -> Vec<String> {
        let document = roxmltree::Document::parse(svg).expect(svg);
        assert_eq!(document.root_element().tag_name().name(), "svg");
        let texts = document.descendants().filter(|node| node.has_tag_name("text"));
        texts.filter_map(|node| Some(node.text()?.trim().to_owned())).collect()
    }

    fn count(svg: &str, tag: &str) -> usize {
        svg.matches(&format!("<{tag} ")).count()
    }

    fn value(middle: f64, spread: f64) -> Value {
        Value { middle, low: middle - spread, high: middle + spread }
    }

    fn lines(spread: f64) -> Lines {
        let series = |name: &str, by: f64| {
            (name.to_owned(), [1.0, 2.0, 4.0].map(|x| (x, value(x * by, spread))).to_vec())
        };
        Lines {
            title: "Net throughput & <loss>".into(),
            x_axis: "VM pairs".into(),
            y_axis: "Gb/s".into(),
            series: vec![series("hyper-switch", 9.0), series("vhost", 5.0)],
            marks: vec![],
        }
    }

    fn bars() -> Bars {
        let series = |name: &str| (name.to_owned(), vec![Some(value(3.0, 0.5)), None]);
        Bars {
            title: "Ablation".into(),
            x_axis: "optimisations".into(),
            y_axis: "Gb/s".into(),
            groups: vec!["none".into(), "all".into()],
            series: vec![series("1 pair"), series("2 pairs")],
        }
    }

    /// Holds that a figure of lines names its title, axes and lines, ticks where there are values, and that markers
    /// are all there and error bars where there is a spread.
    #[test]
    fn lines_are_drawn() {
        let svg = lines(1.0).to_svg();
        let texts = texts(&svg);
        for text in ["Net throughput & <loss>", "VM pairs", "Gb/s", "hyper-switch", "vhost", "1", "2", "4"] {
            assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
        }
        assert_eq!(count(&svg, "polygon"), 2 * (3 + 1), "a marker a value, and one in the legend");
        let without = lines(0.0).to_svg();
        assert_eq!(
            count(&svg, "polyline") - count(&without, "polyline"),
            2 * 3 * 3,
            "a bar and its ends a value"
        );
    }

    /// Holds that a figure of bars names its groups and series, and that there is a bar for each value only.
    #[test]
    fn bars_are_drawn() {
        let svg = bars().to_svg();
        let texts = texts(&svg);
        for text in ["Ablation", "optimisations", "Gb/s", "none", "all", "1 pair", "2 pairs"] {
            assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
        }
        assert_eq!(
            count(&svg, "rect"),
            1 + 2 * (1 + 1),
            "the background, and by series a bar and the legend's"
        );
    }

    /// Holds that what is shown beside lines is: dashes across, or a hollow marker where it is.
    #[test]
    fn marks_are_drawn() {
        let mark = |x, y| Mark { name: "elsewhere".into(), series: 1, x, y };
        let with = |marks: Vec<Mark>| Lines { marks, ..lines(0.0) }.to_svg();
        let without = with(vec![]);
        let (across, at) = (with(vec![mark(None, 20.0)]), with(vec![mark(Some(2.0), 20.0)]));
        for svg in [&across, &at] {
            assert!(texts(svg).contains(&"elsewhere".to_owned()));
        }
        assert!(texts(&with(vec![mark(None, 60.0)])).contains(&"60.0".to_owned()), "the axis reaches it");
        assert!(count(&across, "polyline") > count(&without, "polyline") + 10);
        assert_eq!(count(&at, "polyline"), count(&without, "polyline") + 2, "one, and the legend's");
    }

    /// Holds that a part lies on the one before, and that the legend has them from the top down.
    #[test]
    fn stacks_are_drawn() {
        let stacks = Stacks {
            title: "Time".into(),
            x_axis: "pairs".into(),
            y_axis: "cores".into(),
            groups: vec!["1".into(), "2".into()],
            parts: vec![("copies".into(), vec![1.0, 2.0]), ("entries".into(), vec![3.0, 0.0])],
        };
        let svg = stacks.to_svg();
        let texts = texts(&svg);
        for text in ["Time", "pairs", "cores", "1", "2", "copies", "entries"] {
            assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
        }
        assert_eq!(
            count(&svg, "rect"),
            1 + 2 * 3 + 2,
            "the background, filled and outlined bars, the legend"
        );
        texts_of_nothing(&Stacks { groups: vec![], parts: vec![], ..stacks }.to_svg());
    }

    /// Holds that rows have their names and a bar of each series, to either side.
    #[test]
    fn rows_are_drawn() {
        let rows = Rows {
            title: "Weight".into(),
            x_axis: "%".into(),
            rows: vec!["entry".into(), "copy".into()],
            series: vec![("x 0.5".into(), vec![4.0, -1.0]), ("x 2".into(), vec![-4.0, 0.0])],
        };
        let svg = rows.to_svg();
        let texts = texts(&svg);
        for text in ["Weight", "%", "entry", "copy", "x 0.5", "x 2"] {
            assert!(texts.iter().any(|found| found == text), "{text}: {texts:?}");
        }
        assert_eq!(count(&svg, "rect"), 1 + 4 + 2, "the background, a bar a value, the legend");
        texts_of_nothing(&Rows { rows: vec![], series: vec![], ..rows }.to_svg());
    }

    fn texts_of_nothing(svg: &str) {
        assert!(!texts(svg).is_empty());
    }

    /// Holds that a figure without values is one nevertheless.
    #[test]
    fn nothing_can_be_drawn() {
        texts(&Lines { series: vec![], ..lines(0.0) }.to_svg());
        texts(&Bars { series: vec![], groups: vec![], ..bars() }.to_svg());
        let zero = ("none".to_owned(), vec![(1.0, value(0.0, 0.0))]);
        texts(&Lines { series: vec![zero], ..lines(0.0) }.to_svg());
    }

    /// Holds that no two of six lines have the same marker, and that bars go from pale to dark.
    #[test]
    fn series_differ_without_colour() {
        let markers: Vec<_> = (0..6).map(|index| marker(index, (0, 0))).collect();
        for (index, marker) in markers.iter().enumerate() {
            assert!(!markers[..index].contains(marker), "{index}");
        }
        let shades: Vec<u8> = (0..8).map(|index| shade(index, 8).0).collect();
        assert!(shades.is_sorted_by(|paler, darker| paler > darker), "{shades:?}");
        assert_eq!(shade(0, 1), SHADES[0]);
    }
}
