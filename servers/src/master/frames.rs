//! Frames on tokio sockets. Control messages only: nobody sends the master a payload.

use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use wire::frame::{Error, HEADER_LEN, Header};

/// Once a header has come, its fields follow at once, or the peer is stuck.
const FIELDS_TIMEOUT: Duration = Duration::from_secs(10);

/// One message as it came.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) header: Header,
    pub(super) fields: Vec<u8>,
}

/// Why a connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub(super) enum FrameError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] Error),
    #[error("{0} bytes of fields are more than the master takes")]
    TooLong(u32),
    #[error("a payload where none belongs")]
    Payload,
    #[error("the peer stopped in the middle of a message")]
    Stuck,
}

/// The next message; `None` when the peer closed between two. Not to be dropped and called again.
pub(super) async fn read(from: &mut (impl AsyncRead + Unpin), fields_max: u32) -> Result<Option<Frame>, FrameError> {
    let mut header = [0; HEADER_LEN];
    let got = from.read(&mut header[..1]).await?;
    if got == 0 {
        return Ok(None);
    }
    let rest = async {
        from.read_exact(&mut header[1..]).await?;
        let header = Header::decode_exact(&header)?;
        // Lengths are bounded before anything is allocated for them.
        if header.payload_len != 0 {
            return Err(FrameError::Payload);
        }
        if header.fields_len > fields_max {
            return Err(FrameError::TooLong(header.fields_len));
        }
        let mut fields = vec![0; header.fields_len as usize];
        from.read_exact(&mut fields).await?;
        header.check_fields(&fields)?;
        Ok(Frame { header, fields })
    };
    tokio::time::timeout(FIELDS_TIMEOUT, rest).await.unwrap_or(Err(FrameError::Stuck)).map(Some)
}
