//! Keys and values of one sequence, in blocks that grow by need and that answers to one prompt share.

use std::sync::Arc;

/// Positions per block. Also the number of key lanes that are scored at once.
pub(crate) const BLOCK: usize = 16;

/// Sizes of a cache: counts of elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheShape {
    /// Number of decoder blocks.
    pub n_layers: usize,
    /// Key/value heads.
    pub n_kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl CacheShape {
    /// Elements of the keys (and of the values) of one layer in one block.
    fn layer(self) -> usize {
        self.n_kv_heads * self.head_dim * BLOCK
    }
}

/// The keys and values of [`BLOCK`] positions, all layers.
#[derive(Debug, Clone)]
struct Block {
    /// `[layers, kv_heads, head_dim, BLOCK]`: positions side by side, so that one query element
    /// meets sixteen keys in one instruction.
    keys: Vec<f32>,
    /// `[layers, kv_heads, BLOCK, head_dim]`.
    values: Vec<f32>,
}

/// One sequence's keys and values. A clone shares every block until it writes into it: samples of
/// one prompt hold the prompt once, plus one partly filled block each.
#[derive(Debug, Clone)]
pub(crate) struct KvCache {
    shape: CacheShape,
    blocks: Vec<Arc<Block>>,
}

impl KvCache {
    /// An empty cache.
    pub(crate) fn new(shape: CacheShape) -> Self {
        Self {
            shape,
            blocks: Vec::new(),
        }
    }

    /// Writes the key and the value of `position` in `layer`; each is `[kv_heads, head_dim]`. The
    /// layers of a position come in any order; positions come one after another.
    pub(crate) fn write(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let CacheShape {
            n_layers, head_dim, ..
        } = self.shape;
        let per_layer = self.shape.layer();
        if position / BLOCK == self.blocks.len() {
            self.blocks.push(Arc::new(Block {
                keys: vec![0.0; n_layers * per_layer],
                values: vec![0.0; n_layers * per_layer],
            }));
        }
        let lane = position % BLOCK;
        let block = Arc::make_mut(&mut self.blocks[position / BLOCK]);
        let keys = &mut block.keys[layer * per_layer..][..per_layer];
        for (lanes, key) in keys.chunks_exact_mut(BLOCK).zip(key) {
            lanes[lane] = *key;
        }
        let values = &mut block.values[layer * per_layer..][..per_layer];
        let heads = values.chunks_exact_mut(BLOCK * head_dim);
        for (positions, value) in heads.zip(value.chunks_exact(head_dim)) {
            positions[lane * head_dim..][..head_dim].copy_from_slice(value);
        }
    }

    /// The blocks of one head in `layer`: keys `[head_dim, BLOCK]`, values `[BLOCK, head_dim]`.
    pub(crate) fn head(&self, layer: usize, head: usize) -> impl Iterator<Item = HeadBlock<'_>> {
        let len = self.shape.head_dim * BLOCK;
        let start = layer * self.shape.layer() + head * len;
        self.blocks.iter().map(move |block| HeadBlock {
            keys: &block.keys[start..][..len],
            values: &block.values[start..][..len],
        })
    }
}

/// [`BLOCK`] positions of one head.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeadBlock<'a> {
    /// `[head_dim, BLOCK]`.
    pub keys: &'a [f32],
    /// `[BLOCK, head_dim]`.
    pub values: &'a [f32],
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: CacheShape = CacheShape {
        n_layers: 2,
        n_kv_heads: 3,
        head_dim: 4,
    };

    fn row(position: usize, what: f32) -> Vec<f32> {
        (0..12)
            .map(|i| position as f32 * 100.0 + i as f32 + what)
            .collect()
    }

    fn fill(cache: &mut KvCache, positions: std::ops::Range<usize>, what: f32) {
        for position in positions {
            for layer in [1, 0] {
                let what = what + layer as f32 * 0.25;
                cache.write(
                    layer,
                    position,
                    &row(position, what),
                    &row(position, what + 0.5),
                );
            }
        }
    }

    fn check(cache: &KvCache, position: usize, what: f32) {
        for layer in 0..2 {
            for head in 0..3 {
                let block = cache
                    .head(layer, head)
                    .nth(position / BLOCK)
                    .expect("written");
                let lane = position % BLOCK;
                let what = what + layer as f32 * 0.25;
                for i in 0..4 {
                    let wanted = row(position, what)[head * 4 + i];
                    assert_eq!(block.keys[i * BLOCK + lane], wanted);
                    assert_eq!(block.values[lane * 4 + i], wanted + 0.5);
                }
            }
        }
    }

    #[test]
    fn clones_share_what_came_before_and_nothing_after() {
        let mut one = KvCache::new(SHAPE);
        fill(&mut one, 0..21, 0.0);
        let mut two = one.clone();
        fill(&mut two, 21..40, 7.0);
        fill(&mut one, 21..30, 0.0);
        (0..21).for_each(|p| check(&two, p, 0.0));
        (21..40).for_each(|p| check(&two, p, 7.0));
        (0..30).for_each(|p| check(&one, p, 0.0));
        assert!(
            Arc::ptr_eq(&one.blocks[0], &two.blocks[0]),
            "a full block is held once"
        );
    }
}
