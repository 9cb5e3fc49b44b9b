//! Streams that are put together here as CRIU sends them, whole, cut anywhere and lying.

use proptest::prelude::*;

use super::*;

const OPEN: u32 = 4;
const PARENT: u32 = 5;
const PRESENT: u32 = 4 << 16 | 6;
const CLOSE: u32 = 0x1023;
const TASK: u64 = 42 << 8 | 1;
const SHMEM: u64 = 7 << 8 | 2;

/// What an event was, without borrowing; bytes that follow one another are one.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Seen {
    Open(PageImage),
    Parent(PageImage),
    Pages(u64, u64, u32),
    Bytes(Vec<u8>),
    Close,
}

fn head(form: Form, command: u32, pages: u64, address: u64, image: u64) -> Vec<u8> {
    let mut bytes = command.to_ne_bytes().to_vec();
    match form {
        Form::Short => bytes.extend(u32::try_from(pages).unwrap().to_ne_bytes()),
        Form::Long => {
            bytes.extend([0xee; 4]);
            bytes.extend(pages.to_ne_bytes());
        }
    }
    bytes.extend(address.to_ne_bytes());
    bytes.extend(image.to_ne_bytes());
    bytes
}

/// A stream of two images, and what it says.
fn whole(form: Form) -> (Vec<u8>, Vec<Seen>) {
    let pages: Vec<u8> = (0..3 * PAGE).map(|at| (at % 251) as u8).collect();
    let stream = [
        head(form, PARENT, 0, 0, TASK),
        head(form, OPEN, 0, 0, TASK),
        head(form, PRESENT, 2, 0x40_0000, TASK),
        pages[..8192].to_vec(),
        head(form, 2, 9, 0x50_0000, TASK),
        head(form, 2 << 16 | 6, 1, 0x60_0000, TASK),
        head(form, OPEN, 0, 0, SHMEM),
        head(form, 1, 1, 0, SHMEM),
        pages[8192..].to_vec(),
        head(form, CLOSE, 0, 0, 0),
    ];
    let (task, shmem) = (PageImage::Task(42), PageImage::Shmem(7));
    let seen = vec![
        Seen::Parent(task),
        Seen::Open(task),
        Seen::Pages(0x40_0000, 2, 4),
        Seen::Bytes(pages[..8192].to_vec()),
        Seen::Pages(0x50_0000, 9, 1),
        Seen::Pages(0x60_0000, 1, 2),
        Seen::Open(shmem),
        Seen::Pages(0, 1, 4),
        Seen::Bytes(pages[8192..].to_vec()),
        Seen::Close,
    ];
    (stream.concat(), seen)
}

/// Reads a stream that comes in pieces of this many bytes.
fn read(stream: &[u8], piece: usize) -> (Vec<Seen>, Result<(), PageStreamError>) {
    let mut decoder = Decoder::new();
    let mut seen = Vec::new();
    for mut input in stream.chunks(piece) {
        loop {
            let event = match decoder.next_event(&mut input) {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    assert_eq!(decoder.next_event(&mut &[0_u8; 64][..]), Err(PageStreamError::Broken));
                    assert_eq!(decoder.finish(), Err(PageStreamError::Broken));
                    return (seen, Err(error));
                }
            };
            match (event, seen.last_mut()) {
                (Event::Bytes(bytes), Some(Seen::Bytes(before))) => before.extend(bytes),
                (Event::Bytes(bytes), _) => seen.push(Seen::Bytes(bytes.to_vec())),
                (Event::Open(image), _) => seen.push(Seen::Open(image)),
                (Event::Parent(image), _) => seen.push(Seen::Parent(image)),
                (Event::Pages { address, pages, flags }, _) => seen.push(Seen::Pages(address, pages, flags.bits())),
                (Event::Close, _) => seen.push(Seen::Close),
            }
        }
        assert!(input.is_empty());
    }
    (seen, decoder.finish())
}

fn refusal(messages: &[Vec<u8>]) -> PageStreamError {
    read(&messages.concat(), usize::MAX).1.unwrap_err()
}

#[test]
fn both_forms_are_told_apart_and_read() {
    for form in [Form::Short, Form::Long] {
        let (stream, expected) = whole(form);
        for piece in [1, 7, 24, 32, 4096, usize::MAX] {
            assert_eq!(read(&stream, piece), (expected.clone(), Ok(())), "{form:?} in pieces of {piece}");
        }
        let mut decoder = Decoder::new();
        assert_eq!(decoder.next_event(&mut &stream[..23]), Ok(None));
        assert_eq!(decoder.form(), None);
        decoder.next_event(&mut &stream[23..24]).unwrap();
        assert_eq!(decoder.form(), Some(form));
    }
}

#[test]
fn every_truncation_is_torn() {
    for form in [Form::Short, Form::Long] {
        let (stream, expected) = whole(form);
        for end in 0..stream.len() {
            let (seen, result) = read(&stream[..end], usize::MAX);
            assert!(matches!(result, Err(PageStreamError::Torn { .. })), "{end}: {result:?}");
            assert!(seen.len() < expected.len());
        }
    }
    let announced = [head(Form::Long, OPEN, 0, 0, TASK), head(Form::Long, PRESENT, 5, 0, TASK), vec![0; 100]];
    assert_eq!(refusal(&announced), PageStreamError::Torn { bytes_missing: 5 * PAGE - 100 });
}

#[test]
fn lies_are_refused() {
    for form in [Form::Short, Form::Long] {
        let open = || head(form, OPEN, 0, 0, TASK);
        let after_open =
            |command, pages, address, image| refusal(&[open(), head(form, command, pages, address, image)]);
        for (pages, address) in [(0, 4096), (1, 4095), (1, u64::MAX - 4095), (u64::from(u32::MAX), u64::MAX - 8191)] {
            assert_eq!(after_open(PRESENT, pages, address, TASK), PageStreamError::Range { address, pages });
        }
        for number in [0, 3, 7, 8, 0x1022, 0x1025, 1 << 16 | OPEN, 4 << 16 | 1, u32::MAX] {
            assert_eq!(after_open(number, 1, 0, TASK), PageStreamError::Command { number });
            assert_eq!(refusal(&[head(form, number, 0, 0, TASK)]), PageStreamError::Command { number });
        }
        for flags in [0, 3, 5, 7, 8, 12] {
            assert_eq!(after_open(flags << 16 | 6, 1, 0, TASK), PageStreamError::Flags { flags });
        }
        let open_image = PageImage::Task(42);
        assert_eq!(after_open(PRESENT, 1, 0, SHMEM), PageStreamError::OtherImage { open: open_image });
        assert_eq!(after_open(OPEN, 0, 0, 10), PageStreamError::Image { number: 10 });
        let asked = refusal(&[head(form, PARENT, 0, 0, TASK), head(form, PRESENT, 1, 0, TASK)]);
        assert_eq!(asked, PageStreamError::NothingOpen);
        assert_eq!(refusal(&[head(form, PRESENT, 1, 0, TASK)]), PageStreamError::NothingOpen);
        assert_eq!(refusal(&[head(form, CLOSE, 0, 0, 0)]), PageStreamError::Empty);
        assert_eq!(refusal(&[open(), head(form, CLOSE, 0, 0, 0), vec![0]]), PageStreamError::BehindClose);
    }
    let most = [head(Form::Long, OPEN, 0, 0, TASK), head(Form::Long, PRESENT, u64::MAX, 0, TASK)];
    assert_eq!(refusal(&most), PageStreamError::Range { address: 0, pages: u64::MAX });
}

/// Lengths, commands and numbers alike: whatever any byte of a stream is, it is read to an end, the same in any pieces.
#[test]
fn any_byte_may_be_another() {
    for form in [Form::Short, Form::Long] {
        let (stream, _) = whole(form);
        let mut refused = 0;
        for at in (0..150).chain(stream.len() - 5 * form.len()..stream.len()) {
            for bit in 0..8 {
                let mut other = stream.clone();
                other[at] ^= 1 << bit;
                let (seen, result) = read(&other, usize::MAX);
                assert_eq!((&seen, &result), (&read(&other, 4099).0, &read(&other, 4099).1), "byte {at}, bit {bit}");
                refused += usize::from(result.is_err());
            }
        }
        assert!(refused > 200, "{refused}");
    }
}

#[test]
fn answers_are_what_the_sender_waits_for() {
    assert_eq!((opened(false), opened(true)), ([0], [1]));
    assert_eq!((parent(false), parent(true)), ([0; 4], 1_i32.to_ne_bytes()));
    assert_eq!(PageImage::Task(42).to_string(), "pagemap-42.img");
    assert_eq!(PageImage::Shmem(7).to_string(), "pagemap-shmem-7.img");
}

proptest! {
    #[test]
    fn any_bytes_in_any_pieces_say_the_same(
        long in any::<bool>(),
        keep in 0_usize..300,
        change in proptest::collection::vec((0_usize..300, any::<u8>()), 0..4),
        noise in proptest::collection::vec(any::<u8>(), 0..200),
        piece in 1_usize..100,
    ) {
        let (mut stream, _) = whole(if long { Form::Long } else { Form::Short });
        stream.truncate(keep);
        for (at, byte) in change {
            if let Some(old) = stream.get_mut(at) {
                *old = byte;
            }
        }
        stream.extend(noise);
        prop_assert_eq!(read(&stream, piece), read(&stream, usize::MAX));
    }
}
