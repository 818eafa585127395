//! The chunkserver.
