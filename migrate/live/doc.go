// Package live moves a guest from one process to another while it runs: pre-copy
// over a stream of pages, then the handover of ownership.
//
// The source dials, the destination listens (Server). On the control connection the
// source makes an offer, which says what guest this is; the destination answers with
// all its reasons against it, or builds the machine and says yes. Then pages come on
// the data connections in rounds, while the guest runs; it is paused for the last
// round and its state; and package handover decides who runs it. Everything before
// that, whatever fails, ends with the guest running on where it was.
//
//	source                                      destination
//	  |---- offer: what guest, which host ---------->|  checks everything
//	  |<--- answer: reasons, or yes -----------------|  machine without a state
//	  |==== pages of round 1, 2, ... ===============>|  memory
//	  |     pause                                    |
//	  |==== pages of the last round ================>|
//	  |---- state ---------------------------------->|  load it
//	  |<--- READY, COMMIT, STARTED, ACK (handover) ->|  run
//
// What a guest is, the package does not know: it drives a Guest on one side and an
// Incoming on the other.
package live
