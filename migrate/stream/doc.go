// Package stream carries guest memory between two machines: the connections of a
// migration and who may make them, the pages that go over them, and the decision when
// enough of them have gone.
//
// # Connections
//
// The source dials (Dialer), the destination accepts (Acceptor). A connection begins
// with a plain preamble that says what migration it belongs to, so that a receiver of
// many guests can hand it on without a key; then TLS 1.3 where it is configured; then
// a token. The destination makes the token up for the first control channel, and every
// later connection has to show it: all connections of a migration have one peer.
// Without TLS that protects from mistakes, not from attackers.
//
// # Frames
//
// A Sender writes frames to its connections, a Receiver puts them into memory. All
// numbers are little-endian.
//
//	 0  kind, four letters
//	 4  bytes on the wire after the header, at most 1 MiB
//	 8  offset in the memory (memory.Region.Offset); number of a barrier
//	16  length in the memory
//	24  CRC-32C of the bytes after the header
//	28  CRC-32C of the 28 bytes before
//
// PAGE has pages, ZSTD compressed ones; ZERO says that a range is zeros; BARR asks to
// confirm all that came before on this connection, FINI likewise and is the last. The
// receiver answers these two by ACKN, or anything by FAIL and a sentence.
//
// A page always takes the same connection, found by a hash of its address. So what is
// sent later arrives later, without any barrier between the rounds of a copy.
//
// # Post-copy
//
// A guest that runs at the destination before all of its memory is there has a Fetcher,
// and its source, which does not run it any more, a Rest. They have two urgent channels:
// on one the destination asks for pages that the guest waits for, on the other the source
// sends all others. Each time that they are connected, which may be often, the source
// sends its list of pages, and the destination answers with those that it has not got:
//
//	asked     -> LIST LIST ...   bitmap of the pages that were not sent before
//	          <- LIST LIST ...   bitmap of those that are missing
//	          <- WANT            a page that somebody waits for
//	          -> PAGE or ZERO    it, unless it is on its way
//	          <- DONE            all have come, or nobody needs them any more
//	          -> FAIL            the source has lost them
//	pushed    -> PAGE or ZERO    the missing pages, each once
//	          -> BARR <- ACKN    which keep little of that on its way
//
// A LIST has the bits of the length bytes of memory from its offset on, as words of 64.
package stream
