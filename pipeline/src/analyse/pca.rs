//! The two directions in which points differ most.

/// Points on the plane of their two main axes.
#[derive(Debug, Clone, PartialEq)]
pub struct Plane {
    /// Of each point.
    pub places: Vec<[f64; 2]>,
    /// Which part of the variance lies along each axis.
    pub explained: [f64; 2],
}

/// Rounds of the iteration: enough for six digits where the third axis is a tenth shorter than the
/// second; nearer than that the plane is anyone's choice.
const ROUNDS: usize = 300;

/// Principal components of `points` (`[points, width]`, row-major), `[pca]` in docs/equations.md, by
/// orthogonal iteration from fixed vectors: the same points have the same picture. The sign of an
/// axis makes its largest part positive.
pub fn plane(points: &[f32], width: usize) -> Plane {
    let n = points.len() / width.max(1);
    if n == 0 {
        return Plane {
            places: Vec::new(),
            explained: [0.0; 2],
        };
    }
    let mut mean = vec![0.0; width];
    for point in points.chunks_exact(width) {
        for (sum, value) in mean.iter_mut().zip(point) {
            *sum += f64::from(*value) / n as f64;
        }
    }
    let mut covariance = vec![0.0; width * width];
    for point in points.chunks_exact(width) {
        let centred: Vec<f64> = point
            .iter()
            .zip(&mean)
            .map(|(v, m)| f64::from(*v) - m)
            .collect();
        for (row, a) in covariance.chunks_exact_mut(width).zip(&centred) {
            for (cell, b) in row.iter_mut().zip(&centred) {
                *cell += a * b / n as f64;
            }
        }
    }
    let total: f64 = (0..width).map(|i| covariance[i * width + i]).sum();
    let times = |vector: &[f64]| -> Vec<f64> {
        covariance
            .chunks_exact(width)
            .map(|row| dot(row, vector))
            .collect()
    };
    // Waves, which no axis of real data is at right angles to.
    let wave =
        |step: f64| -> Vec<f64> { (0..width).map(|i| (step * (i + 1) as f64).sin()).collect() };
    let (mut first, mut second) = (wave(1.0), wave(2.3));
    let mut lengths = [0.0; 2];
    for _ in 0..ROUNDS {
        (first, lengths[0]) = normalised(times(&first));
        let mut next = times(&second);
        let along = dot(&next, &first);
        next.iter_mut()
            .zip(&first)
            .for_each(|(v, f)| *v -= along * f);
        (second, lengths[1]) = normalised(next);
    }
    for axis in [&mut first, &mut second] {
        let largest = axis
            .iter()
            .copied()
            .max_by(|a, b| a.abs().total_cmp(&b.abs()));
        if largest.is_some_and(|part| part < 0.0) {
            axis.iter_mut().for_each(|part| *part = -*part);
        }
    }
    let places = points
        .chunks_exact(width)
        .map(|point| {
            let centred: Vec<f64> = point
                .iter()
                .zip(&mean)
                .map(|(v, m)| f64::from(*v) - m)
                .collect();
            [dot(&centred, &first), dot(&centred, &second)]
        })
        .collect();
    let share = |length: f64| if total > 0.0 { length / total } else { 0.0 };
    Plane {
        places,
        explained: lengths.map(share),
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// A vector of length 1, and the length it had; zeros stay zeros.
fn normalised(mut vector: Vec<f64>) -> (Vec<f64>, f64) {
    let length = dot(&vector, &vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|v| *v /= length);
    }
    (vector, length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretched_cloud_lies_along_its_axes() {
        // Variances 9, 1 and 0.01 along turned axes.
        let axes = [[0.6, 0.8, 0.0], [-0.8, 0.6, 0.0], [0.0, 0.0, 1.0]];
        let mut points = Vec::new();
        for i in 0..4000 {
            let t = i as f64;
            let along = [3.0, 1.0, 0.1].map(|s| s * 2_f64.sqrt());
            let parts = [
                along[0] * t.sin(),
                along[1] * (1.7 * t).cos(),
                along[2] * (2.9 * t).sin(),
            ];
            points.extend((0..3).map(|k| {
                let value: f64 = parts
                    .iter()
                    .zip(&axes)
                    .map(|(part, axis)| part * axis[k])
                    .sum();
                (value + 5.0) as f32
            }));
        }
        let plane = plane(&points, 3);
        assert!(
            (plane.explained[0] - 9.0 / 10.01).abs() < 0.01,
            "{:?}",
            plane.explained
        );
        assert!((plane.explained[1] - 1.0 / 10.01).abs() < 0.01);
        let far = plane.places.iter().map(|p| p[0].abs()).fold(0.0, f64::max);
        assert!((far - 3.0 * 2_f64.sqrt()).abs() < 0.05, "{far}");
    }

    #[test]
    fn points_that_do_not_differ_have_a_plane_too() {
        assert_eq!(plane(&[1.0; 12], 3).places, vec![[0.0; 2]; 4]);
        assert!(plane(&[], 3).places.is_empty());
    }
}
