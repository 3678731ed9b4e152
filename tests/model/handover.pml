/*
 * The handover of a guest between two hosts (package migrate/handover), for spin.
 *
 * It is written apart from the Go machines, after the rules in that package's doc.go, so
 * that a mistake would have to be made twice. What stands for what:
 *
 *	here                          in Go
 *	source(), destination()       Source, Destination
 *	S_COPYING ... S_GONE          SourceCopying ... SourceGone
 *	D_RECEIVING ... D_FORGOTTEN   DestinationReceiving ... DestinationForgotten
 *	S_DOWN, D_DOWN                no process
 *	D_UNKNOWN                     a new process, before UnknownDestination
 *	ready, commit, ... ack        the messages Ready, Commit, ... Ack; Abort of either side
 *	s_disk, d_disk                what may be found in the Journal after a crash
 *	s_writing, d_writing          WriteJournal that has not ended
 *	s_guest, d_guest              the guest is in the process
 *	s_run, d_run                  its processors run: after Resume and Run
 *
 * A message that was said stays: it can be heard at any time, any number of times, in any
 * order, or never. Timers fire and links break at any moment, so they need no names: what
 * they lead to can happen at any moment. Processes crash any number of times.
 * Orders by force are not here; the walk of the Go machines has them, and shows that each
 * state gets out of doubt when nothing fails any more.
 *
 * Each -D of the mutants below makes one plausible mistake, which spin has to find.
 */

/* Records of the source, and of the destination: bits of s_disk and d_disk. */
#define NOTHING   0
#define OWNER     1
#define RELEASED  2
#define GONE      3
#define AGAIN     4
#define SETTLED   2
#define REFUSED   3
#define BIT(r)    (1 << (r))

mtype = { S_DOWN, S_COPYING, S_FROZEN, S_RELEASING, S_UNDOING, S_UNLOCKING, S_RELEASED,
	S_LOCKING, S_RECLAIMING, S_LEAVING, S_ABORTED, S_OWNER, S_GONE };
mtype = { D_DOWN, D_UNKNOWN, D_RECEIVING, D_READY, D_LOCKING, D_OWNING, D_REFUSING, D_UNLOCKING,
	D_REFUSED, D_OWNER, D_DONE, D_FORGOTTEN, D_ABORTED };

bool ready, commit, started, refused, s_abort, d_abort, ack;

mtype s = S_COPYING;
bool s_guest = true, s_run = true;
byte s_disk = BIT(NOTHING), s_writing = NOTHING;

mtype d = D_RECEIVING;
bool d_guest = true, d_run;
byte d_disk = BIT(NOTHING), d_writing = NOTHING;

bool sent;   /* the source's guest was paused, and its state sent */
bool ran_on; /* it ran after that */
bool ran;    /* the destination's guest ran */

#define S_READABLE (s_disk | (s_writing != NOTHING -> BIT(s_writing) : 0))
#define D_READABLE (d_disk | (d_writing != NOTHING -> BIT(d_writing) : 0))
#define S_MAY (BIT(NOTHING) | BIT(OWNER) | BIT(AGAIN))
#define D_MAY (BIT(OWNER) | BIT(SETTLED))

/* What is promised: one guest at most runs; none runs on from where the other side has
 * gone on; and no crash leaves both journals with the permission to start the guest. */
inline promise() {
	assert(!(s_run && d_run));
	assert(!(ran && ran_on));
	assert(!((S_READABLE & S_MAY) && (D_READABLE & D_MAY)))
}

inline resume() {
	if
	:: s_guest -> s_run = true; ran_on = ran_on || sent
	:: else
	fi
}

inline start() {
	d_run = true;
	ran = true
}

/* A write ends: done, failed, or nobody knows. */
inline s_written() { s_disk = BIT(s_writing); s_writing = NOTHING }
inline s_torn()    { s_disk = s_disk | BIT(s_writing) }
inline d_written() { d_disk = BIT(d_writing); d_writing = NOTHING }
inline d_torn()    { d_disk = d_disk | BIT(d_writing) }

inline s_take_back() {
	if
	:: s_guest -> s = S_LOCKING
	:: else -> s = S_RECLAIMING; s_writing = AGAIN
	fi
}

/* A crash finds one of the records that may be there. */
inline s_crash(r) {
	s = S_DOWN; s_guest = false; s_run = false;
	s_disk = BIT(r); s_writing = NOTHING
}
inline d_crash(r) {
	d = D_DOWN; d_guest = false; d_run = false;
	d_disk = BIT(r); d_writing = NOTHING
}

inline refuse() {
#ifdef REFUSED_SAID_BUT_NOT_JOURNALED
	d = D_REFUSED; d_guest = false; d_run = false; d_writing = NOTHING; refused = true
#else
	d = D_REFUSING; d_writing = REFUSED
#endif
}

active proctype source() {
end:	do
	/* Rule 1: any error or timeout before RELEASED aborts. */
	:: atomic { s == S_COPYING -> s = S_FROZEN; s_run = false; sent = true; promise() }
	:: atomic { (s == S_COPYING || s == S_FROZEN) -> s = S_ABORTED; s_abort = true; resume(); promise() }
	:: atomic { s == S_FROZEN && ready -> s = S_RELEASING; s_writing = RELEASED;
#ifdef COMMIT_BEFORE_JOURNAL
		commit = true;
#endif
		promise() }

	:: atomic { s == S_RELEASING -> s_written(); s = S_UNLOCKING; promise() }
	:: atomic { s == S_RELEASING -> s_writing = NOTHING; s = S_ABORTED; s_abort = true; resume(); promise() }
	:: atomic { s == S_RELEASING -> s_torn();
#ifdef RESUME_ON_UNKNOWN_WRITE
		s_writing = NOTHING; s = S_ABORTED;
		resume();
#else
		s_writing = OWNER; s = S_UNDOING; s_abort = true;
#endif
		promise() }

	:: atomic { s == S_UNDOING -> s_written(); s = S_ABORTED; s_abort = true; resume(); promise() }
	:: atomic { s == S_UNDOING -> s_torn(); promise() }
	:: atomic { s == S_UNDOING && refused -> ack = true; resume(); promise() }

	/* Rule 6: the locks are dropped in between, and then COMMIT is said. */
	:: atomic { s == S_UNLOCKING -> s = S_RELEASED; commit = true; promise() }

	/* Rule 2: nothing but an answer ends it. */
	:: atomic { s == S_RELEASED && started -> s = S_LEAVING; s_guest = false; s_writing = GONE; promise() }
	:: atomic { s == S_RELEASED && refused -> s_take_back(); promise() }
#ifdef RESUME_ON_SEND_ERROR
	/* COMMIT was said, but the connection broke. */
	:: atomic { s == S_RELEASED && s_guest -> s = S_ABORTED; resume(); promise() }
#endif
#ifdef RESUME_ON_TIMEOUT
	:: atomic { s == S_RELEASED -> s = S_ABORTED; s_abort = true; resume(); promise() }
#endif

	:: atomic { s == S_LOCKING -> s = S_RECLAIMING; s_writing = AGAIN; promise() }
	:: atomic { s == S_RECLAIMING -> s_written(); s = S_OWNER; ack = true; resume(); promise() }
	:: atomic { s == S_RECLAIMING -> s_torn(); promise() }
	:: atomic { s == S_LEAVING -> s_written(); s = S_GONE; ack = true; promise() }
	:: atomic { s == S_LEAVING -> s_torn(); promise() }

	:: atomic { (s == S_ABORTED || s == S_OWNER) && ready -> s_abort = true; promise() }
	:: atomic { (s == S_ABORTED || s == S_OWNER || s == S_GONE) && refused -> ack = true; promise() }
	:: atomic { s == S_GONE && started -> ack = true; promise() }

	:: atomic { s != S_DOWN && (S_READABLE & BIT(NOTHING)) -> s_crash(NOTHING); promise() }
	:: atomic { s != S_DOWN && (S_READABLE & BIT(OWNER)) -> s_crash(OWNER); promise() }
	:: atomic { s != S_DOWN && (S_READABLE & BIT(RELEASED)) -> s_crash(RELEASED); promise() }
	:: atomic { s != S_DOWN && (S_READABLE & BIT(GONE)) -> s_crash(GONE); promise() }
	:: atomic { s != S_DOWN && (S_READABLE & BIT(AGAIN)) -> s_crash(AGAIN); promise() }

	/* Rule 5: what the journal says is all that a new process knows. */
	:: atomic { s == S_DOWN -> 
		if
		:: s_disk == BIT(RELEASED) -> s = S_RELEASED; commit = true
		:: s_disk == BIT(GONE) -> s = S_GONE
		:: s_disk == BIT(AGAIN) -> s = S_OWNER
		:: s_disk == BIT(OWNER) || s_disk == BIT(NOTHING) -> s = S_ABORTED
		fi;
		promise() }
	od
}

active proctype destination() {
end:	do
	:: atomic { d == D_RECEIVING && sent -> ready = true;
#ifdef START_AT_READY
		d = D_LOCKING;
#else
		d = D_READY;
#endif
		promise() }
	:: atomic { d == D_RECEIVING -> d = D_ABORTED; d_guest = false; d_abort = true; promise() }

	/* Rule 3: a timeout, or whatever goes wrong, leads to REFUSED, never to running. */
	:: atomic { d == D_READY && commit -> d = D_LOCKING; promise() }
	:: atomic { d == D_READY ->
#ifdef RUN_ON_TIMEOUT
		d = D_LOCKING;
#else
		refuse();
#endif
		promise() }

	/* Rule 6: locks, then the journal, then (rule 7) the guest runs. */
	:: atomic { d == D_LOCKING -> d = D_OWNING; d_writing = OWNER;
#ifdef RUN_BEFORE_JOURNAL
		start();
#endif
		promise() }
	:: atomic { d == D_LOCKING -> refuse(); promise() }

	:: atomic { d == D_OWNING -> d_written(); d = D_OWNER; started = true; start(); promise() }
	:: atomic { d == D_OWNING -> d_writing = NOTHING; refuse(); promise() }
	:: atomic { d == D_OWNING -> d_torn(); d_writing = NOTHING; refuse(); promise() }

	:: atomic { d == D_REFUSING -> d_written(); d = D_UNLOCKING; d_guest = false; d_run = false; promise() }
	:: atomic { d == D_REFUSING -> d_torn(); promise() }
	:: atomic { d == D_UNLOCKING -> d = D_REFUSED; refused = true; promise() }
	:: atomic { d == D_REFUSED && ack -> d = D_FORGOTTEN; d_disk = d_disk | BIT(NOTHING); promise() }

	:: atomic { d == D_OWNER && ack -> d = D_DONE; d_writing = SETTLED; promise() }
	:: atomic { d == D_DONE && d_writing == SETTLED -> d_written(); promise() }
	:: atomic { d == D_DONE && d_writing == SETTLED -> d_torn(); d_writing = NOTHING; promise() }

	:: atomic { d != D_DOWN && (D_READABLE & BIT(NOTHING)) -> d_crash(NOTHING); promise() }
	:: atomic { d != D_DOWN && (D_READABLE & BIT(OWNER)) -> d_crash(OWNER); promise() }
	:: atomic { d != D_DOWN && (D_READABLE & BIT(SETTLED)) -> d_crash(SETTLED); promise() }
	:: atomic { d != D_DOWN && (D_READABLE & BIT(REFUSED)) -> d_crash(REFUSED); promise() }

	/* Nobody uses the record, and without it the same is said. */
	:: atomic { d == D_DOWN && d_disk == BIT(REFUSED) -> d_disk = BIT(NOTHING); promise() }
#ifdef OWNER_PRUNED
	:: atomic { d == D_DOWN && d_disk == BIT(OWNER) -> d_disk = BIT(NOTHING); promise() }
#endif

	/* Rule 4. */
	:: atomic { d == D_DOWN ->
		if
		:: d_disk == BIT(NOTHING) -> d = D_UNKNOWN
		:: d_disk == BIT(OWNER) -> d = D_OWNER; started = true
		:: d_disk == BIT(SETTLED) -> d = D_DONE
		:: d_disk == BIT(REFUSED) -> d = D_REFUSED; refused = true
		fi;
		promise() }
	:: atomic { (d == D_UNKNOWN || d == D_ABORTED || d == D_FORGOTTEN) && commit -> refuse(); promise() }
	od
}
