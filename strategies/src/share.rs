//! A share of tokens, as an option.

use serde::{Deserialize, Serialize};

/// A number above 0, at most 1.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(try_from = "f64", into = "f64")]
#[schemars(with = "f64")]
pub struct Share(f64);

impl Share {
    /// The number.
    pub fn get(self) -> f64 {
        self.0
    }
}

impl From<Share> for f64 {
    fn from(share: Share) -> Self {
        share.0
    }
}

impl TryFrom<f64> for Share {
    type Error = String;

    fn try_from(share: f64) -> Result<Self, String> {
        if share > 0.0 && share <= 1.0 {
            Ok(Self(share))
        } else if share > 1.0 && share <= 100.0 {
            Err(format!(
                "{share} is not a share; write {} for {share} %",
                share / 100.0
            ))
        } else {
            Err(format!(
                "{share} is not a share; write a number above 0 and at most 1"
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percents_are_not_shares() {
        let refused = |share| Share::try_from(share).unwrap_err();
        assert_eq!(refused(80.0), "80 is not a share; write 0.8 for 80 %");
        assert!(refused(0.0).starts_with("0 is not a share"));
        assert!(refused(f64::NAN).contains("above 0"));
        assert!(refused(-0.2).contains("above 0"));
        assert_eq!(Share::try_from(1.0).map(Share::get), Ok(1.0));
    }
}
