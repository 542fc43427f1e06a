//! A look at a shared library before the system's loader gets it.
//!
//! `dlopen` maps a truncated library past its end and the process dies of SIGBUS; of a library for
//! another processor it says "No such file or directory". Both are seen in the headers.

/// Why a file is no shared library for this machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ElfError {
    /// No ELF magic.
    #[error("not a shared library (it has no ELF header)")]
    NoElf,
    /// The file ends inside a header, or before a segment ends.
    #[error("truncated: {what} needs {needed} bytes, the file has {found}")]
    Truncated {
        /// The part.
        what: String,
        /// Bytes of the file it needs.
        needed: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// 32 bits, or big-endian.
    #[error("built for another kind of machine ({0}); this program needs 64 bits, little-endian")]
    Class(&'static str),
    /// Another processor.
    #[error("built for {}, this program runs on {}", machine(*.found), machine(*.expected))]
    Machine {
        /// Its ELF machine number.
        found: u16,
        /// This program's.
        expected: u16,
    },
    /// A program, an object file, a core dump.
    #[error("is {0}, expected a shared library (crate-type = [\"cdylib\"], or cc -shared)")]
    Kind(&'static str),
    /// Headers that say nonsense.
    #[error("damaged: {0}")]
    Damaged(&'static str),
}

/// `e_machine` of the program that asks.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    62
};

fn machine(number: u16) -> String {
    match number {
        3 => "x86 (32 bits)".to_owned(),
        40 => "ARM (32 bits)".to_owned(),
        62 => "x86-64".to_owned(),
        183 => "AArch64".to_owned(),
        243 => "RISC-V".to_owned(),
        other => format!("another processor (ELF machine {other})"),
    }
}

/// Size of the ELF header and of a program header, 64 bits.
const HEADER: usize = 64;
const SEGMENT: usize = 56;

/// Checks that `file`, a whole file, is a complete shared library for this processor.
///
/// # Errors
/// When it is not; says why.
pub fn check(file: &[u8]) -> Result<(), ElfError> {
    if file.get(..4) != Some(b"\x7fELF") {
        return Err(ElfError::NoElf);
    }
    let truncated = |what: String, needed: u64| ElfError::Truncated {
        what,
        needed,
        found: file.len() as u64,
    };
    let header = file
        .get(..HEADER)
        .ok_or_else(|| truncated("the ELF header".to_owned(), HEADER as u64))?;
    if header[4] != 2 {
        return Err(ElfError::Class("32 bits"));
    }
    if header[5] != 1 {
        return Err(ElfError::Class("big-endian"));
    }
    let found = u16_at(header, 18);
    if found != MACHINE {
        return Err(ElfError::Machine {
            found,
            expected: MACHINE,
        });
    }
    match u16_at(header, 16) {
        3 => {}
        1 => return Err(ElfError::Kind("an object file")),
        2 => return Err(ElfError::Kind("a program")),
        _ => return Err(ElfError::Kind("another kind of ELF file")),
    }
    let (start, count) = (u64_at(header, 32), u16_at(header, 56));
    if usize::from(u16_at(header, 54)) != SEGMENT {
        return Err(ElfError::Damaged("its program headers have another size"));
    }
    let table = SEGMENT as u64 * u64::from(count);
    let end = start
        .checked_add(table)
        .ok_or(ElfError::Damaged("its program headers lie nowhere"))?;
    if end > file.len() as u64 {
        return Err(truncated("the program header table".to_owned(), end));
    }
    // Within the file, so within usize.
    let headers = &file[start as usize..end as usize];
    for (index, segment) in headers.chunks_exact(SEGMENT).enumerate() {
        let end = u64_at(segment, 8)
            .checked_add(u64_at(segment, 32))
            .ok_or(ElfError::Damaged("a segment ends nowhere"))?;
        if end > file.len() as u64 {
            return Err(truncated(format!("segment {index}"), end));
        }
    }
    Ok(())
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut eight = [0; 8];
    eight.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(eight)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A library of one segment that is the whole file.
    fn library() -> Vec<u8> {
        let mut file = vec![0; HEADER + SEGMENT + 16];
        let len = file.len() as u64;
        file[..6].copy_from_slice(b"\x7fELF\x02\x01");
        file[16] = 3;
        file[18..20].copy_from_slice(&MACHINE.to_le_bytes());
        file[32] = HEADER as u8;
        file[54] = SEGMENT as u8;
        file[56] = 1;
        file[HEADER + 32..HEADER + 40].copy_from_slice(&len.to_le_bytes());
        file
    }

    #[test]
    fn every_cut_is_seen() {
        let file = library();
        assert_eq!(check(&file), Ok(()));
        for len in 0..file.len() {
            let found = check(&file[..len]);
            match len {
                0..4 => assert_eq!(found, Err(ElfError::NoElf)),
                _ => assert!(matches!(found, Err(ElfError::Truncated { .. })), "{len}"),
            }
        }
    }

    #[test]
    fn no_byte_makes_it_panic() {
        let file = library();
        for at in 0..HEADER + SEGMENT {
            for byte in [0, 1, 0x7f, 0xff] {
                let mut file = file.clone();
                file[at] = byte;
                let _ = check(&file);
            }
        }
    }

    #[test]
    fn other_machines_are_named() {
        let with = |at: usize, byte: u8| {
            let mut file = library();
            file[at] = byte;
            check(&file).unwrap_err().to_string()
        };
        let other = if MACHINE == 183 { 62 } else { 183 };
        assert!(with(18, other).starts_with(&format!("built for {}", machine(other.into()))));
        assert!(with(4, 1).contains("32 bits"));
        assert!(with(5, 2).contains("big-endian"));
        assert!(with(16, 2).starts_with("is a program"));
        assert!(with(63 + 15, 0xff).contains("damaged") || with(63 + 15, 0xff).contains("trunc"));
    }
}
