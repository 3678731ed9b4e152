package live

// Point is a place in a migration: before or after something that the other side, a
// disk or a later process could notice.
type Point struct {
	Op Op
	// What is sent, written or done: for OpSend the frame or the handover's verb, for
	// OpJournal the record's state, for OpLocks "take" or "drop", for OpMemory the
	// "first" or "last" round.
	What  string
	After bool
}

// String is for the names of tests: send-READY-before.
func (p Point) String() string {
	when := "before"
	if p.After {
		when = "after"
	}
	return string(p.Op) + "-" + p.What + "-" + when
}

// Op is a kind of Point.
type Op string

// The kinds of point.
const (
	OpSend    Op = "send"
	OpJournal Op = "journal"
	OpLocks   Op = "locks"
	OpMemory  Op = "memory"
	OpRun     Op = "run"
)

// Trace is for the injection of faults: it is called at each point, by the goroutine that
// comes there, which waits for it. An error takes the place of what was to be done, or of
// its success. nil, as outside of tests, does nothing.
type Trace func(Point) error

// around does something between its two points.
func (t Trace) around(op Op, what string, do func() error) error {
	if t == nil {
		return do()
	}
	err := t(Point{Op: op, What: what})
	if err == nil {
		err = do()
	}
	if err == nil {
		err = t(Point{Op: op, What: what, After: true})
	}
	return err
}
