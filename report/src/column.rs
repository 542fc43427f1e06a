//! A number per token, and how it is shown as a colour.

/// A column.
#[derive(Debug, Clone, PartialEq)]
pub struct Column {
    /// E.g. `weight`, `delta-c`, `entropy@base`.
    pub name: String,
    /// `[tokens]`.
    pub values: Vec<f32>,
    /// What is shown palest and darkest.
    pub scale: Scale,
}

/// From numbers to how dark a colour is. Logarithmic, since most columns have many small numbers and
/// a few large ones: a number of the size `knee` from the palest is half way to about ten of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// Palest where all numbers have one sign.
    pub low: f32,
    /// Darkest.
    pub high: f32,
    /// Whether there are two colours, from 0 to both sides; then `low` is `-high`.
    pub signed: bool,
    /// The size up to which the scale is about even.
    pub knee: f32,
}

impl Column {
    /// A column with the scale that its values suggest: from 0 to both sides where there are both
    /// signs, else over the middle 96 % of them, so that a few far ones do not take all colours.
    pub fn new(name: &str, values: Vec<f32>) -> Self {
        let mut sorted: Vec<f32> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_unstable_by(f32::total_cmp);
        let at = |share: f64| match sorted.len() {
            0 => 0.0,
            n => sorted[((n - 1) as f64 * share).round() as usize],
        };
        let (low, high) = (at(0.02), at(0.98));
        let signed = low < 0.0 && high > 0.0;
        let (low, high) = match (name, signed) {
            ("weight", _) => (0.0, 1.0),
            (_, true) => (-high.max(-low), high.max(-low)),
            (_, false) => (low, high),
        };
        let mut sizes: Vec<f32> = sorted
            .iter()
            .map(|v| if signed { v.abs() } else { v - low })
            .collect();
        sizes.sort_unstable_by(f32::total_cmp);
        let middle = sizes.get(sizes.len() / 2).copied().unwrap_or(0.0);
        let reach = if signed { high } else { high - low };
        let knee = match name {
            "weight" => 1e6,
            _ => middle.max(reach / 1000.0),
        };
        let scale = Scale {
            low,
            high,
            signed,
            knee,
        };
        Self {
            name: name.to_owned(),
            values,
            scale,
        }
    }

    /// In words.
    pub fn label(&self) -> String {
        let (what, at) = match self.name.split_once('@') {
            Some((what, at)) => (what, format!(" at the {at}")),
            None => (self.name.as_str(), String::new()),
        };
        let what = match what {
            "weight" => "weight in the loss",
            "delta-c" => "Δc, rise from base to bottleneck",
            "logp" => "log-probability",
            "rank" => "rank of the token",
            "grad_norm" => "gradient norm",
            other => other,
        };
        format!("{what}{at}")
    }
}

impl Scale {
    /// From -1 to 1 where it is signed, else from 0 to 1: how far `value` is on the scale.
    pub fn place(self, value: f32) -> f32 {
        let log = |size: f32| (size / self.knee).ln_1p();
        let share = |part: f32, whole: f32| match whole > 0.0 && part.is_finite() {
            true => (log(part) / log(whole)).min(1.0),
            false => 0.0,
        };
        if self.signed {
            share(value.abs(), self.high) * value.signum()
        } else {
            share((value - self.low).max(0.0), self.high - self.low)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_follow_the_signs_and_forgive_outliers() {
        let mut values: Vec<f32> = (0..1000).map(|i| i as f32 / 1000.0).collect();
        values[999] = 1e9;
        let column = Column::new("entropy@base", values);
        assert!(column.scale.place(0.9) > 0.8 && column.scale.place(1e9) == 1.0);
        assert_eq!(column.scale.place(f32::NAN), 0.0);
        let signed = Column::new("delta-c", vec![-4.0, -0.01, 0.0, 0.01, 2.0]);
        assert!(signed.scale.signed && signed.scale.high == 4.0);
        let place = |value| signed.scale.place(value);
        assert_eq!([place(0.0), place(-4.0), place(9.0)], [0.0, -1.0, 1.0]);
        assert!(place(0.01) > 0.05 && place(0.01) < place(0.1) && place(0.01) == -place(-0.01));
        let constant = Column::new("x", vec![3.0; 4]);
        assert_eq!(constant.scale.place(3.0), 0.0);
        assert_eq!(Column::new("x", Vec::new()).scale.place(1.0), 0.0);
    }

    #[test]
    fn weights_are_shown_as_they_are() {
        let weights = Column::new("weight", vec![0.0, 0.25, 1.0]);
        assert!((weights.scale.place(0.25) - 0.25).abs() < 1e-6);
        assert_eq!(weights.scale.place(1.0), 1.0);
    }
}
