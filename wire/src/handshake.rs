//! Proof of the cluster key at connect, by both sides. ISO/IEC 9798-4, mutual, three passes.
//!
//! ```text
//! dialling side                                   accepting side, with a key
//!   HELLO                                     ->
//!                                             <-   CHALLENGE nonce
//!   PROOF nonce, to, address, MAC("dial")     ->
//!                                             <-   WELCOME the fields of HELLO_OK, MAC("accept")
//! ```
//!
//! Both MACs cover the protocol number, both nonces, all of HELLO (role, server, boot, cluster, shard,
//! term), which server is meant and the address dialled; that of the accepting side covers its answer
//! as well. So a proof is good for one connection, to one server, in one direction: replayed it meets
//! another nonce, reflected it has the wrong label, passed on to another server it names the wrong one.
//!
//! Without a key on the accepting side HELLO is answered by HELLO_OK at once; a dialling side with a
//! key does not accept that. The decisions only: no I/O, no clock, and random numbers come in.

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::error::{Fault, Kind, Reason};
use crate::frame::{self, Header, PROTOCOL};
use crate::hello::{Hello, HelloOk};
use crate::ids::ServerId;
use crate::key::{ClusterKey, MAC_LEN};
use crate::message::{Malformed, Message, Request, tag};

/// Random bytes that each side chooses anew for every connection.
pub type Nonce = [u8; 32];

/// How the key is given, for the texts of refusals.
pub const REMEDY: &str = "give the file of the cluster's key by --cluster-key-file or HERCULES_CLUSTER_KEY_FILE";

const DIAL: &str = "hercules handshake dial";
const ACCEPT: &str = "hercules handshake accept";

/// "Prove that you know the cluster key."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Challenge {
    /// The accepting side's.
    pub nonce: Nonce,
}

/// "I do, and now you."
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// The dialling side's.
    pub nonce: Nonce,
    /// The server that is meant; zero is the master.
    pub to: ServerId,
    /// The address as it was dialled, `host:port`.
    #[serde(deserialize_with = "crate::bounds::address")]
    pub address: String,
    /// MAC of the dialling side.
    pub mac: [u8; MAC_LEN],
}

/// Accepts a connection that has proved the key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// As without a key.
    pub hello: HelloOk,
    /// MAC of the accepting side.
    pub mac: [u8; MAC_LEN],
}

impl Message for Challenge {
    const TAG: u16 = tag::CHALLENGE;
}

impl Message for Proof {
    const TAG: u16 = tag::PROOF;
}

impl Request for Proof {
    type Reply = Welcome;
}

impl Message for Welcome {
    const TAG: u16 = tag::WELCOME;
}

/// What the dialling side does next.
#[derive(Debug, PartialEq, Eq)]
pub enum Step {
    /// Send this frame, and read one more.
    Send(Vec<u8>),
    /// The connection is open.
    Open(HelloOk),
}

/// Why a connection was not opened. Nothing was done on either side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DialError {
    /// The accepting side refused, or did not prove the key.
    #[error("{0}")]
    Refused(Fault),
    /// What it sent is not an answer.
    #[error("not an answer to hello: {0}")]
    Malformed(#[from] Malformed),
}

/// The dialling side of one handshake.
#[derive(Debug)]
pub struct Dial {
    hello: Hello,
    to: ServerId,
    address: String,
    key: Option<(ClusterKey, Nonce)>,
    proved: Option<Vec<u8>>,
}

impl Dial {
    /// A handshake with the server `to` (zero: the master) at `address`. The nonce must be new and random.
    #[must_use]
    pub fn new(hello: Hello, to: ServerId, address: &str, key: Option<(ClusterKey, Nonce)>) -> Self {
        Self { hello, to, address: address.to_owned(), key, proved: None }
    }

    /// The first frame: HELLO.
    #[must_use]
    pub fn hello(&self, request_id: u64, deadline_ms: u32) -> Vec<u8> {
        frame::head(&self.hello, request_id, deadline_ms, 0)
    }

    /// Takes a frame of the accepting side.
    ///
    /// # Errors
    ///
    /// [`DialError`]: close the connection.
    pub fn heard(&mut self, header: &Header, fields: &[u8]) -> Result<Step, DialError> {
        match header.tag {
            tag::FAULT => Err(DialError::Refused(frame::open(header, fields)?)),
            tag::HELLO_OK => {
                let ok = frame::open(header, fields)?;
                if self.key.is_some() {
                    let text = format!("{} has no cluster key: start it with the same key as this side", self.address);
                    return Err(refused(text));
                }
                Ok(Step::Open(ok))
            }
            tag::CHALLENGE if self.proved.is_none() => {
                let challenge = frame::open(header, fields)?;
                self.prove(&challenge, header.request_id).map(Step::Send)
            }
            tag::WELCOME => self.welcome(&frame::open(header, fields)?).map(Step::Open),
            other => Err(Malformed::Tag(other).into()),
        }
    }

    fn prove(&mut self, challenge: &Challenge, request_id: u64) -> Result<Vec<u8>, DialError> {
        let Some((key, nonce)) = &self.key else {
            return Err(refused(format!("{} needs the cluster key: {REMEDY}", self.address)));
        };
        let said = transcript(&self.hello, challenge, nonce, self.to, &self.address);
        let mac = key.mac(DIAL, &[&said]);
        let proof = Proof { nonce: *nonce, to: self.to, address: self.address.clone(), mac };
        self.proved = Some(said);
        Ok(frame::head(&proof, request_id, 0, 0))
    }

    fn welcome(&self, welcome: &Welcome) -> Result<HelloOk, DialError> {
        let (Some((key, _)), Some(said)) = (&self.key, &self.proved) else {
            return Err(Malformed::Tag(tag::WELCOME).into());
        };
        if !key.verifies(ACCEPT, &[said, &codec::encode(&welcome.hello)], &welcome.mac) {
            let text = format!("{} did not prove the cluster key: the keys differ, {REMEDY}", self.address);
            return Err(refused(text));
        }
        Ok(welcome.hello.clone())
    }
}

/// The accepting side of one handshake, after it has heard HELLO.
#[derive(Debug)]
pub struct Accept {
    hello: Hello,
    challenge: Challenge,
}

/// A proof that was found good.
#[derive(Debug)]
pub struct Proved {
    /// The address as it was dialled.
    pub address: String,
    said: Vec<u8>,
}

impl Accept {
    /// Answers this HELLO. The nonce must be new and random.
    #[must_use]
    pub fn new(hello: Hello, nonce: Nonce) -> Self {
        Self { hello, challenge: Challenge { nonce } }
    }

    /// What is sent first.
    #[must_use]
    pub fn challenge(&self) -> &Challenge {
        &self.challenge
    }

    /// Checks the proof, made for server `me` (zero: the master).
    ///
    /// # Errors
    ///
    /// Send it and close the connection. [`Kind::Unauthorized`] with the remedy: the proof is wrong, in
    /// whichever part. [`Kind::StaleEpoch`]: the dialling side has the key and meant another server.
    pub fn check(&self, key: &ClusterKey, proof: &Proof, me: ServerId) -> Result<Proved, Fault> {
        let said = transcript(&self.hello, &self.challenge, &proof.nonce, proof.to, &proof.address);
        if !key.verifies(DIAL, &[&said], &proof.mac) {
            let text = format!("the cluster key is not the one of this server: {REMEDY}");
            return Err(Fault::new(Kind::Unauthorized, text));
        }
        if proof.to != me {
            let text = format!("{} was meant, this is {}: ask the master where it is", name(proof.to), name(me));
            return Err(Fault::refused(Reason::StaleEpoch, 0, text));
        }
        Ok(Proved { address: proof.address.clone(), said })
    }
}

impl Proved {
    /// The answer, with the accepting side's own proof.
    #[must_use]
    pub fn welcome(&self, key: &ClusterKey, hello: HelloOk) -> Welcome {
        let mac = key.mac(ACCEPT, &[&self.said, &codec::encode(&hello)]);
        Welcome { hello, mac }
    }
}

/// What the dialling side is told that did not prove the key when it was asked to.
#[must_use]
pub fn no_proof() -> Fault {
    Fault::new(Kind::Unauthorized, format!("this server needs the cluster key: {REMEDY}"))
}

fn name(server: ServerId) -> String {
    if server == ServerId(0) { "the master".into() } else { format!("server {server}") }
}

fn refused(text: String) -> DialError {
    DialError::Refused(Fault::new(Kind::Unauthorized, text))
}

/// Everything both MACs are about.
fn transcript(hello: &Hello, challenge: &Challenge, nonce: &Nonce, to: ServerId, address: &str) -> Vec<u8> {
    let mut out = PROTOCOL.to_le_bytes().to_vec();
    out.extend_from_slice(&challenge.nonce);
    out.extend_from_slice(nonce);
    // Fixed width, so what follows cannot slide into it.
    out.extend_from_slice(&codec::encode(hello));
    out.extend_from_slice(&to.0.to_le_bytes());
    out.extend_from_slice(address.as_bytes());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::HEADER_LEN;
    use crate::hello::Role;
    use crate::ids::{ClusterId, Term};
    use crate::message::Body;

    const SERVER: ServerId = ServerId(3);
    const ADDRESS: &str = "chunkserver3:8083";

    fn key(seed: u8) -> ClusterKey {
        ClusterKey::from_random([seed; 32])
    }

    fn hello() -> Hello {
        let cluster = ClusterId([0xcc; 16]);
        Hello { role: Role::Member, server: ServerId(2), boot: 7, cluster, shard: 1, term: Term(4) }
    }

    fn hello_ok() -> HelloOk {
        HelloOk { server: SERVER, boot: 9, cluster: ClusterId([0xcc; 16]), shards: 4, version: "0.1.0".into() }
    }

    fn dial(key: Option<ClusterKey>) -> Dial {
        Dial::new(hello(), SERVER, ADDRESS, key.map(|key| (key, [1; 32])))
    }

    /// Gives a message to the dialling side.
    fn tell<B: Body>(dial: &mut Dial, body: &B) -> Result<Step, DialError> {
        let bytes = frame::head(body, 5, 0, 0);
        let header = Header::decode_exact(bytes.first_chunk().unwrap()).unwrap();
        dial.heard(&header, &bytes[HEADER_LEN..])
    }

    fn proof_of(step: Step) -> Proof {
        let Step::Send(bytes) = step else { panic!("a proof is sent, not {step:?}") };
        let header = Header::decode_exact(bytes.first_chunk().unwrap()).unwrap();
        assert_eq!(header.request_id, 5);
        frame::open(&header, &bytes[HEADER_LEN..]).unwrap()
    }

    fn kind<T: std::fmt::Debug>(outcome: Result<T, DialError>) -> Kind {
        match outcome.unwrap_err() {
            DialError::Refused(fault) => fault.kind,
            DialError::Malformed(malformed) => panic!("{malformed}"),
        }
    }

    #[test]
    fn both_sides_with_one_key_open_a_connection() {
        let (mut dial, accept) = (dial(Some(key(1))), Accept::new(hello(), [2; 32]));
        let proof = proof_of(tell(&mut dial, accept.challenge()).unwrap());
        let proved = accept.check(&key(1), &proof, SERVER).unwrap();
        assert_eq!(proved.address, ADDRESS);
        let step = tell(&mut dial, &proved.welcome(&key(1), hello_ok())).unwrap();
        assert_eq!(step, Step::Open(hello_ok()));
    }

    #[test]
    fn without_keys_hello_is_enough_and_a_side_with_a_key_never_settles_for_that() {
        assert_eq!(tell(&mut dial(None), &hello_ok()).unwrap(), Step::Open(hello_ok()));
        assert_eq!(kind(tell(&mut dial(Some(key(1))), &hello_ok())), Kind::Unauthorized);
        let fault = tell(&mut dial(None), &Challenge { nonce: [2; 32] });
        let Err(DialError::Refused(fault)) = fault else { panic!("{fault:?}") };
        assert_eq!(fault.kind, Kind::Unauthorized);
        assert!(fault.text.contains("--cluster-key-file") && fault.text.contains(ADDRESS), "{fault}");
    }

    #[test]
    fn a_proof_is_good_for_one_challenge_one_server_and_one_hello() {
        let accept = Accept::new(hello(), [2; 32]);
        let proof = proof_of(tell(&mut dial(Some(key(1))), accept.challenge()).unwrap());
        let refused = |accept: &Accept, proof: &Proof, me| {
            let want = if proof.to == me { Kind::Unauthorized } else { Kind::StaleEpoch };
            accept.check(&key(1), proof, me).unwrap_err().kind == want
        };
        assert!(accept.check(&key(1), &proof, SERVER).is_ok());
        assert!(accept.check(&key(2), &proof, SERVER).is_err(), "another key");
        assert!(refused(&accept, &proof, ServerId(4)), "relayed to another server");
        assert!(refused(&accept, &proof, ServerId(0)), "relayed to the master");
        assert!(refused(&Accept::new(hello(), [3; 32]), &proof, SERVER), "replayed");
        for altered in [
            Hello { role: Role::Master, ..hello() },
            Hello { server: ServerId(5), ..hello() },
            Hello { boot: 8, ..hello() },
            Hello { cluster: ClusterId([0xdd; 16]), ..hello() },
            Hello { shard: 2, ..hello() },
            Hello { term: Term(5), ..hello() },
        ] {
            assert!(refused(&Accept::new(altered.clone(), [2; 32]), &proof, SERVER), "{altered:?}");
        }
        for altered in [
            Proof { nonce: [9; 32], ..proof.clone() },
            Proof { to: ServerId(4), ..proof.clone() },
            Proof { address: "elsewhere:8083".into(), ..proof.clone() },
        ] {
            let me = altered.to;
            assert!(refused(&accept, &altered, me), "{altered:?}");
        }
        for bit in 0..MAC_LEN * 8 {
            let mut altered = proof.clone();
            altered.mac[bit / 8] ^= 1 << (bit % 8);
            assert!(refused(&accept, &altered, SERVER), "bit {bit}");
        }
    }

    #[test]
    fn the_accepting_side_must_prove_the_key_as_well() {
        let accept = Accept::new(hello(), [2; 32]);
        let begun = || {
            let mut dial = dial(Some(key(1)));
            let proof = proof_of(tell(&mut dial, accept.challenge()).unwrap());
            (dial, proof)
        };
        let (mut dial, proof) = begun();
        let reflected = Welcome { hello: hello_ok(), mac: proof.mac };
        assert_eq!(kind(tell(&mut dial, &reflected)), Kind::Unauthorized, "its own proof sent back");
        let proved = accept.check(&key(1), &proof, SERVER).unwrap();
        let good = proved.welcome(&key(1), hello_ok());
        for altered in [
            HelloOk { server: ServerId(4), ..hello_ok() },
            HelloOk { boot: 10, ..hello_ok() },
            HelloOk { shards: 5, ..hello_ok() },
            HelloOk { cluster: ClusterId::default(), ..hello_ok() },
        ] {
            let (mut dial, _) = begun();
            assert_eq!(kind(tell(&mut dial, &Welcome { hello: altered, ..good.clone() })), Kind::Unauthorized);
        }
        let (mut dial, _) = begun();
        assert_eq!(kind(tell(&mut dial, &proved.welcome(&key(2), hello_ok()))), Kind::Unauthorized);
    }

    #[test]
    fn messages_out_of_turn_are_malformed() {
        let challenge = Challenge { nonce: [2; 32] };
        let welcome = Welcome { hello: hello_ok(), mac: [0; MAC_LEN] };
        let malformed = |outcome| matches!(outcome, Err(DialError::Malformed(Malformed::Tag(_))));
        assert!(malformed(tell(&mut dial(Some(key(1))), &welcome)), "before a challenge");
        assert!(malformed(tell(&mut dial(None), &welcome)), "without a key");
        let mut twice = dial(Some(key(1)));
        tell(&mut twice, &challenge).unwrap();
        assert!(malformed(tell(&mut twice, &challenge)), "one proof for each connection");
    }
}
