//! Grouped-query attention over packed examples, block by block: `[tokens, tokens]` never exists.
//!
//! The forward pass keeps, besides its result, one number per row and head: the log-sum-exp of the
//! scores. The backward pass recomputes a tile of probabilities from it (FlashAttention,
//! arXiv 2205.14135 and 2307.08691). Every tile is a matrix product.
//!
//! Letters: `q [rows, heads * d]`, `k` and `v` `[rows, kv_heads * d]`; heads `g * n .. (g + 1) * n`
//! read key/value head `g`, where `n = heads / kv_heads`. Scores are scaled by `1 / sqrt(d)`.

use std::ops::Range;

use candle_core::{Result, Tensor, bail};
use rayon::prelude::*;
use t3s_core::AttentionPattern;

use super::{
    attention_pattern::Spans,
    disjoint::DisjointRows,
    host,
    matmul::{Into, Mat, MatMut, Threads, matmul},
    simd::{dot, exp, max, sum, vectorised, with_scratch},
};

/// Queries per tile.
const QUERIES: usize = 64;
/// Keys per tile; a tile of scores (128 KiB) stays in the second-level cache.
const KEYS: usize = 512;
/// An example's keys are spread over at most this many backward tasks per key/value head ...
const MAX_KEY_TASKS: usize = 4;
/// ... of at least this many keys each, since each but the first needs a query gradient of its own.
const MIN_TASK_KEYS: usize = 1024;

/// How many heads there are and how wide they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heads {
    /// Query heads.
    pub n_heads: usize,
    /// Key/value heads; divides `n_heads`.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl Heads {
    fn group(&self) -> usize {
        self.n_heads / self.n_kv_heads
    }

    /// Columns of the queries.
    pub(crate) fn width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Columns of the keys, and of the values.
    pub(crate) fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    fn scale(&self) -> f32 {
        1.0 / (self.head_dim as f32).sqrt()
    }
}

/// The attention output and the log-sum-exp of the scores.
///
/// # Shapes
/// `q [rows, heads * d]`, `k`, `v` `[rows, kv_heads * d]`, `offsets [examples + 1]`; results
/// `[rows, heads * d]` and `[rows, heads]`.
///
/// # Errors
/// When shapes disagree, the pattern has no kernel, or the device has none.
pub fn forward(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor)> {
    let rows = check(q, k, v, heads, offsets, pattern)?;
    on_cuda!(
        q,
        super::cuda::attention::forward(q, k, v, heads, offsets, pattern)
    );
    let (d, width, kv_width) = (heads.head_dim, heads.width(), heads.kv_width());
    let (q, k, v) = (
        host::read("attention", q)?,
        host::read("attention", k)?,
        host::read("attention", v)?,
    );
    let mut out = host::overwritten(rows * width);
    let mut lse = host::overwritten(rows * heads.n_heads);
    let out_rows = DisjointRows::new(&mut out, width);
    let lse_rows = DisjointRows::new(&mut lse, heads.n_heads);

    let tasks: Vec<(Range<usize>, usize, Range<usize>)> = examples(offsets)
        .flat_map(|example| {
            let spans = Spans::new(pattern, example.len());
            (0..heads.n_heads).flat_map(move |head| {
                let example = example.clone();
                spans
                    .query_tiles(0, QUERIES)
                    .map(move |queries| (example.clone(), head, queries))
            })
        })
        .collect();
    tasks.into_par_iter().for_each(|(example, head, queries)| {
        let spans = Spans::new(pattern, example.len());
        let (start, n) = (queries.start, queries.len());
        let kv_column = head / heads.group() * d;
        let q = Mat::new(
            &q[(example.start + start) * width + head * d..],
            n,
            d,
            width,
        );
        with_scratch(n * (KEYS + d + 2), |scratch| {
            let (scores, rest) = scratch.split_at_mut(n * KEYS);
            let (acc, rest) = rest.split_at_mut(n * d);
            let (largest, total) = rest.split_at_mut(n);
            acc.fill(0.0);
            largest.fill(f32::NEG_INFINITY);
            total.fill(0.0);
            for (part, tile) in spans.key_tiles(&queries, 0..example.len(), KEYS) {
                let first = (example.start + tile.start) * kv_width + kv_column;
                let k = Mat::new(&k[first..], tile.len(), d, kv_width);
                let v = Mat::new(&v[first..], tile.len(), d, kv_width);
                let s = MatMut::new(scores, n, tile.len(), tile.len());
                matmul(s, Into::Overwrite, q, k.t(), heads.scale(), Threads::One);
                vectorised(
                    #[inline(always)]
                    || {
                        for (i, p) in scores.chunks_exact_mut(tile.len()).take(n).enumerate() {
                            let visible = spans.visible(start + i, part, &tile);
                            p[..visible.start].fill(0.0);
                            p[visible.end..].fill(0.0);
                            let seen = &mut p[visible];
                            if seen.is_empty() {
                                continue;
                            }
                            let new = largest[i].max(max(seen));
                            for p in seen.iter_mut() {
                                *p = exp(*p - new);
                            }
                            let old = exp(largest[i] - new);
                            total[i] = total[i] * old + sum(seen.len(), |j| seen[j]);
                            largest[i] = new;
                            for a in &mut acc[i * d..(i + 1) * d] {
                                *a *= old;
                            }
                        }
                    },
                );
                let p = Mat::new(scores, n, tile.len(), tile.len());
                let acc = MatMut::new(acc, n, d, d);
                matmul(acc, Into::Add, p, v, 1.0, Threads::One);
            }
            for i in 0..n {
                let row = example.start + start + i;
                // SAFETY: (row, head) belongs to this task alone.
                #[expect(unsafe_code, reason = "see the safety comment")]
                let (out, lse) = unsafe {
                    (
                        out_rows.piece(row, head * d, d),
                        lse_rows.piece(row, head, 1),
                    )
                };
                lse[0] = largest[i] + total[i].ln();
                for (out, a) in out.iter_mut().zip(&acc[i * d..]) {
                    *out = a / total[i];
                }
            }
        });
    });
    Ok((
        host::tensor(out, (rows, width))?,
        host::tensor(lse, (rows, heads.n_heads))?,
    ))
}

/// What `forward` read and gave back.
#[derive(Debug, Clone, Copy)]
pub struct Forwarded<'a> {
    /// `[rows, heads * d]`, after norm and rotary.
    pub q: &'a Tensor,
    /// `[rows, kv_heads * d]`, after norm and rotary.
    pub k: &'a Tensor,
    /// `[rows, kv_heads * d]`.
    pub v: &'a Tensor,
    /// `[rows, heads * d]`, the result.
    pub out: &'a Tensor,
    /// `[rows, heads]`, the log-sum-exp of the scores.
    pub lse: &'a Tensor,
}

/// `(dq, dk, dv)` from the gradient of the output.
///
/// With `P = exp(S - lse)`: `dV = P^T dO`, `dP = dO V^T`, `dS = P * (dP - rowsum(dO * O))`,
/// `dQ = dS K / sqrt(d)`, `dK = dS^T Q / sqrt(d)`.
///
/// # Errors
/// When shapes disagree, the pattern has no kernel, or the device has none.
pub fn backward(
    d_out: &Tensor,
    forwarded: Forwarded<'_>,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<(Tensor, Tensor, Tensor)> {
    let Forwarded { q, k, v, out, lse } = forwarded;
    let rows = check(q, k, v, heads, offsets, pattern)?;
    let (d, width, kv_width) = (heads.head_dim, heads.width(), heads.kv_width());
    host::expect("attention output", out, &[rows, width])?;
    host::expect("attention output gradient", d_out, &[rows, width])?;
    host::expect("attention log-sum-exp", lse, &[rows, heads.n_heads])?;
    on_cuda!(
        q,
        super::cuda::attention::backward(d_out, forwarded, heads, offsets, pattern)
    );
    let (q, k, v, out, lse, d_out) = (
        host::read("attention", q)?,
        host::read("attention", k)?,
        host::read("attention", v)?,
        host::read("attention", out)?,
        host::read("attention", lse)?,
        host::read("attention", d_out)?,
    );
    let mut dq = host::overwritten(rows * width);
    let mut dk = host::overwritten(rows * kv_width);
    let mut dv = host::overwritten(rows * kv_width);
    let pass = Backward {
        q: &q,
        k: &k,
        v: &v,
        out: &out,
        lse: &lse,
        d_out: &d_out,
        heads,
        pattern,
        dq: DisjointRows::new(&mut dq, width),
        dk: DisjointRows::new(&mut dk, kv_width),
        dv: DisjointRows::new(&mut dv, kv_width),
    };
    let tasks: Vec<(Range<usize>, usize)> = examples(offsets)
        .flat_map(|example| (0..heads.n_kv_heads).map(move |kv_head| (example.clone(), kv_head)))
        .collect();
    tasks.into_par_iter().for_each(|(example, kv_head)| {
        let keys = example.len().div_ceil(MAX_KEY_TASKS);
        let keys = keys.max(MIN_TASK_KEYS).next_multiple_of(QUERIES);
        let n_tasks = example.len().div_ceil(keys);
        let partials: Vec<Vec<f32>> = (0..n_tasks)
            .into_par_iter()
            .map(|task| {
                let keys = task * keys..((task + 1) * keys).min(example.len());
                pass.keys(&example, kv_head, keys)
            })
            .collect();
        let group_width = heads.group() * d;
        for partial in &partials {
            let n = partial.len() / group_width;
            let first = example.end - n;
            for (i, partial) in partial.chunks_exact(group_width).enumerate() {
                // SAFETY: the query rows of this example and these heads are this task's, and its
                // inner tasks have ended.
                #[expect(unsafe_code, reason = "see the safety comment")]
                let dq = unsafe { pass.dq.piece(first + i, kv_head * group_width, group_width) };
                for (dq, p) in dq.iter_mut().zip(partial) {
                    *dq += p;
                }
            }
        }
    });
    Ok((
        host::tensor(dq, (rows, width))?,
        host::tensor(dk, (rows, kv_width))?,
        host::tensor(dv, (rows, kv_width))?,
    ))
}

/// The slices a backward task reads and the buffers it writes its pieces of.
struct Backward<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    d_out: &'a [f32],
    heads: Heads,
    pattern: AttentionPattern,
    dq: DisjointRows<'a>,
    dk: DisjointRows<'a>,
    dv: DisjointRows<'a>,
}

impl Backward<'_> {
    /// Everything that flows through `keys` of one example and key/value head. The first key task
    /// writes `dq`; a later one returns its share, `[queries from the first that sees a key on,
    /// group * d]`.
    fn keys(&self, example: &Range<usize>, kv_head: usize, keys: Range<usize>) -> Vec<f32> {
        let (d, group) = (self.heads.head_dim, self.heads.group());
        let kv_width = self.heads.kv_width();
        let spans = Spans::new(self.pattern, example.len());
        let first_query = spans.first_query(keys.start);
        let n_queries = example.len() - first_query;
        let mut share = match keys.start {
            0 => Vec::new(),
            _ => host::overwritten(n_queries * group * d),
        };
        with_scratch(
            2 * keys.len() * d + QUERIES * (2 * KEYS + d + 1),
            |scratch| {
                let (dk, rest) = scratch.split_at_mut(keys.len() * d);
                let (dv, tile_scratch) = rest.split_at_mut(keys.len() * d);
                dk.fill(0.0);
                dv.fill(0.0);
                for in_group in 0..group {
                    let head = kv_head * group + in_group;
                    for queries in spans.query_tiles(first_query, QUERIES) {
                        let (start, n) = (queries.start, queries.len());
                        let dq = self.queries(example, head, queries, &keys, dk, dv, tile_scratch);
                        for (i, dq) in dq.chunks_exact(d).take(n).enumerate() {
                            if keys.start == 0 {
                                let row = example.start + start + i;
                                // SAFETY: (row, head) is written by the first key task alone.
                                #[expect(unsafe_code, reason = "see the safety comment")]
                                let out = unsafe { self.dq.piece(row, head * d, d) };
                                out.copy_from_slice(dq);
                            } else {
                                let row = start - first_query + i;
                                share[(row * group + in_group) * d..][..d].copy_from_slice(dq);
                            }
                        }
                    }
                }
                for (i, (dk, dv)) in dk.chunks_exact(d).zip(dv.chunks_exact(d)).enumerate() {
                    let row = example.start + keys.start + i;
                    debug_assert!((kv_head + 1) * d <= kv_width);
                    // SAFETY: (row, kv_head) belongs to this key task alone.
                    #[expect(unsafe_code, reason = "see the safety comment")]
                    unsafe {
                        self.dk.piece(row, kv_head * d, d).copy_from_slice(dk);
                        self.dv.piece(row, kv_head * d, d).copy_from_slice(dv);
                    }
                }
            },
        );
        share
    }

    /// One tile of queries of one head against those of `keys` that it sees: returns its `dq`,
    /// `[queries, d]`, and adds to `dk` and `dv`, whose first row is key `keys.start`.
    #[expect(
        clippy::too_many_arguments,
        reason = "three outputs and a place to compute"
    )]
    fn queries<'s>(
        &self,
        example: &Range<usize>,
        head: usize,
        queries: Range<usize>,
        keys: &Range<usize>,
        dk: &mut [f32],
        dv: &mut [f32],
        scratch: &'s mut [f32],
    ) -> &'s [f32] {
        let heads = self.heads;
        let spans = Spans::new(self.pattern, example.len());
        let (d, width, kv_width) = (heads.head_dim, heads.width(), heads.kv_width());
        let n = queries.len();
        let kv_column = head / heads.group() * d;
        let (p, rest) = scratch.split_at_mut(QUERIES * KEYS);
        let (ds, rest) = rest.split_at_mut(QUERIES * KEYS);
        let (dq, delta) = rest.split_at_mut(QUERIES * d);

        let first = (example.start + queries.start) * width + head * d;
        let (q, d_out) = (&self.q[first..], &self.d_out[first..]);
        let out = &self.out[first..];
        let lse = &self.lse[(example.start + queries.start) * heads.n_heads + head..];
        vectorised(
            #[inline(always)]
            || {
                for (i, delta) in delta[..n].iter_mut().enumerate() {
                    *delta = dot(&d_out[i * width..][..d], &out[i * width..][..d]);
                }
            },
        );
        let (q, d_out) = (Mat::new(q, n, d, width), Mat::new(d_out, n, d, width));
        dq.fill(0.0);
        for (part, tile) in spans.key_tiles(&queries, keys.clone(), KEYS) {
            let m = tile.len();
            let first = (example.start + tile.start) * kv_width + kv_column;
            let k = Mat::new(&self.k[first..], m, d, kv_width);
            let v = Mat::new(&self.v[first..], m, d, kv_width);
            let s = MatMut::new(p, n, m, m);
            matmul(s, Into::Overwrite, q, k.t(), heads.scale(), Threads::One);
            let dp = MatMut::new(ds, n, m, m);
            matmul(dp, Into::Overwrite, d_out, v.t(), 1.0, Threads::One);
            vectorised(
                #[inline(always)]
                || {
                    let rows = p.chunks_exact_mut(m).zip(ds.chunks_exact_mut(m)).take(n);
                    for (i, (p, ds)) in rows.enumerate() {
                        let visible = spans.visible(queries.start + i, part, &tile);
                        let (lse, delta) = (lse[i * heads.n_heads], delta[i]);
                        let seen = p[visible.clone()].iter_mut();
                        for (p, ds) in seen.zip(&mut ds[visible.clone()]) {
                            *p = exp(*p - lse);
                            *ds = *p * (*ds - delta);
                        }
                        for hidden in [0..visible.start, visible.end..m] {
                            p[hidden.clone()].fill(0.0);
                            ds[hidden].fill(0.0);
                        }
                    }
                },
            );
            let (p, ds) = (Mat::new(p, n, m, m), Mat::new(ds, n, m, m));
            let at = (tile.start - keys.start) * d;
            let dv = MatMut::new(&mut dv[at..], m, d, d);
            matmul(dv, Into::Add, p.t(), d_out, 1.0, Threads::One);
            let dk = MatMut::new(&mut dk[at..], m, d, d);
            matmul(dk, Into::Add, ds.t(), q, heads.scale(), Threads::One);
            let dq = MatMut::new(dq, n, d, d);
            matmul(dq, Into::Add, ds, k, heads.scale(), Threads::One);
        }
        &dq[..n * d]
    }
}

fn examples(offsets: &[u32]) -> impl Iterator<Item = Range<usize>> {
    offsets.windows(2).map(|w| w[0] as usize..w[1] as usize)
}

fn check(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    heads: Heads,
    offsets: &[u32],
    pattern: AttentionPattern,
) -> Result<usize> {
    if heads.n_kv_heads == 0 || !heads.n_heads.is_multiple_of(heads.n_kv_heads) {
        bail!("attention: {heads:?}: the key/value heads do not divide the heads");
    }
    let (rows, _) = host::dims2("attention queries", q)?;
    host::expect("attention queries", q, &[rows, heads.width()])?;
    host::expect("attention keys", k, &[rows, heads.kv_width()])?;
    host::expect("attention values", v, &[rows, heads.kv_width()])?;
    let covers = offsets.first() == Some(&0)
        && offsets.last() == Some(&(rows as u32))
        && offsets.is_sorted();
    if !covers {
        bail!("attention: offsets {offsets:?} do not cover {rows} rows");
    }
    examples(offsets).try_for_each(|example| Spans::check(pattern, example.len()))?;
    Ok(rows)
}
