// Package handover decides which of two hosts may run a guest that moves from one
// to the other, so that whatever crashes, hangs or is cut off never both run it, and
// as rarely as possible none.
//
// A Source and a Destination are pure state machines: Step takes an event and returns
// the next state and the actions that follow, with no I/O, clock or goroutine inside.
// A driver on each host carries the actions out. What has to outlive a process is in a
// Journal of one small file a migration.
//
// An epoch is one turn of owning the guest. The source owns it in epoch e, the
// destination may get e+1, and if that refuses, the source goes on as e+2; so no epoch
// is ever lived on two hosts.
//
//	source journal            destination journal    who may run the guest
//	none, or OWNER e          none                   source
//	RELEASED e                none                   nobody: in transit
//	RELEASED e, later GONE e  OWNER e+1              destination
//	RELEASED e                REFUSED e+1            nobody yet
//	OWNER e+2                 REFUSED e+1            source
//
// The messages, none of which has to arrive, or once, or in order:
//
//	source                          destination
//	  |  (memory, then all state)        |
//	  |--------------------------------->|  Receiving
//	  |<------------ READY --------------|  Ready
//	  |  journal RELEASED, drop locks    |
//	  |------------ COMMIT ------------->|  take locks, journal OWNER e+1, run
//	  |<----------- STARTED -------------|  (or journal REFUSED, then REFUSED)
//	  |  destroy, journal GONE           |
//	  |-------------- ACK -------------->|
//
// The rules, which the comments in the code name where each is kept:
//
//  1. Before RELEASED is written any error or timeout aborts, and the source runs on.
//  2. After RELEASED no timeout brings the source back, only REFUSED does, or an
//     operator who has fenced the destination. It sends COMMIT for ever.
//  3. The destination may time out from ready to refused, never from ready to running.
//  4. A restarted destination with nothing in its journal journals REFUSED and says so.
//     With OWNER it says STARTED: the guest died there, and the source stays down.
//  5. A restarted source with RELEASED keeps asking and answering. Nothing starts a
//     guest without reading the journal (Journal.MayStart).
//  6. The source drops its disk locks after RELEASED and before COMMIT. The destination
//     takes them, and then journals OWNER; if it cannot, it refuses.
//  7. The destination runs nothing, sends no packet and writes no disk before OWNER.
package handover
