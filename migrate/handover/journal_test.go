package handover

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func openJournal(t *testing.T) *Journal {
	t.Helper()
	j, err := OpenJournal(filepath.Join(t.TempDir(), "journal"))
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func acquire(t *testing.T, j *Journal, k Key) *Slot {
	t.Helper()
	s, err := j.Acquire(k)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// put writes a record of a new migration, and returns its slot, closed.
func put(t *testing.T, j *Journal, vm string, e Entry) *Slot {
	t.Helper()
	s := acquire(t, j, Key{VM: vm, Role: e.Role, ID: NewID()})
	s.Peer = "192.0.2.7:4000"
	if err := s.Write(e); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return s
}

func sourceEntry(state RecordState, base, epoch uint64) Entry {
	return Entry{Role: RoleSource, State: state, Base: base, Epoch: epoch, Settled: state != StateReleased}
}

func destinationEntry(state RecordState, base uint64, settled bool) Entry {
	return Entry{Role: RoleDestination, State: state, Base: base, Epoch: base + 1, Settled: settled}
}

func TestSlot(t *testing.T) {
	j := openJournal(t)
	k := Key{VM: "web-1.a_b", Role: RoleSource, ID: NewID()}
	s := acquire(t, j, k)
	if _, err := s.Load(); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("load before a write: %v", err)
	}
	s.Peer = "[2001:db8::1]:4000"
	want := sourceEntry(StateReleased, 3, 3)
	want.Reason = "<é>"
	for range 2 {
		if err := s.Write(want); err != nil {
			t.Fatal(err)
		}
	}
	r, err := s.Load()
	if err != nil || r.Entry != want || r.Key() != k || r.Peer != s.Peer || r.Time.IsZero() {
		t.Errorf("%+v, %v", r, err)
	}
	if _, err := j.Acquire(k); !errors.Is(err, ErrBusy) {
		t.Errorf("a second slot of the record: %v, want ErrBusy", err)
	}
	if other, err := j.Acquire(Key{VM: k.VM, Role: RoleDestination, ID: k.ID}); err != nil {
		t.Errorf("the slot of the other side: %v", err)
	} else if err := other.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = acquire(t, j, k)
	for range 2 {
		if err := s.Remove(); err != nil {
			t.Error(err)
		}
	}
	if all, err := j.List(); err != nil || len(all) != 0 {
		t.Errorf("after Remove: %v, %v", all, err)
	}
}

func TestAcquireRefuses(t *testing.T) {
	j := openJournal(t)
	for _, k := range []Key{
		{}, {VM: "vm"}, {Role: RoleSource}, {VM: "../vm", Role: RoleSource}, {VM: ".vm", Role: RoleSource},
		{VM: strings.Repeat("v", 64), Role: RoleSource}, {VM: "vm", Role: 3},
	} {
		if s, err := j.Acquire(k); err == nil {
			t.Errorf("%+v: no error", k)
			s.Close()
		}
	}
}

func TestWriteRefuses(t *testing.T) {
	j := openJournal(t)
	s := acquire(t, j, Key{VM: "vm", Role: RoleSource, ID: NewID()})
	for _, e := range []Entry{
		{}, destinationEntry(StateOwner, 1, false), sourceEntry(StateOwner, 1, 4), sourceEntry(StateOwner, 0, 0),
		sourceEntry(StateRefused, 1, 2), sourceEntry(StateReleased, 1, 2), sourceEntry(StateOwner, 1<<63, 1<<63),
	} {
		err := s.Write(e)
		if err == nil || Outcome(err).Kind != JournalFailed {
			t.Errorf("%+v: %v", e, err)
		}
	}
	s.Peer = strings.Repeat("p", maxPeer+1)
	if err := s.Write(sourceEntry(StateReleased, 1, 1)); err == nil {
		t.Error("an address without end was written")
	}
	s.Peer = ""
	long := sourceEntry(StateReleased, 1, 1)
	long.Reason = strings.Repeat("\x00", 2*MaxReason)
	if err := s.Write(long); err != nil {
		t.Fatal(err)
	}
	if r, err := s.Load(); err != nil || len(r.Reason) != MaxReason {
		t.Errorf("a long reason: %d bytes, %v", len(r.Reason), err)
	}
}

// TestWriteFails has the journal as it was when nothing could be written.
func TestWriteFails(t *testing.T) {
	j := openJournal(t)
	s := acquire(t, j, Key{VM: "vm", Role: RoleSource, ID: NewID()})
	// A folder in the place of the record: the rename fails.
	if err := os.MkdirAll(filepath.Join(s.path, "full"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(sourceEntry(StateReleased, 1, 1)); Outcome(err).Kind != JournalFailed {
		t.Errorf("%v", err)
	}
	if err := os.RemoveAll(s.path); err != nil {
		t.Fatal(err)
	}
	// No folder at all: the temporary file cannot be made.
	if err := os.Rename(j.dir, j.dir+".away"); err != nil {
		t.Fatal(err)
	}
	if err := s.Write(sourceEntry(StateReleased, 1, 1)); Outcome(err).Kind != JournalFailed {
		t.Errorf("%v", err)
	}
	if _, err := j.List(); err == nil {
		t.Error("a journal that is gone lists nothing, without an error")
	}
	if err := j.MayStart("vm"); err == nil {
		t.Error("a journal that is gone permits a start")
	}
}

func TestUnchanged(t *testing.T) {
	for _, test := range []struct {
		before, written, now string
		want                 bool
	}{
		{"", "new", "", true},
		{"old", "new", "old", true},
		{"", "new", "new", false},
		{"old", "new", "new", false},
		{"same", "same", "same", false},
		{"old", "new", "", false},
	} {
		if got := unchanged([]byte(test.before), []byte(test.written), []byte(test.now)); got != test.want {
			t.Errorf("%q, then %q written, and %q is read: %v", test.before, test.written, test.now, got)
		}
	}
}

func TestOutcome(t *testing.T) {
	for _, test := range []struct {
		err  error
		want EventKind
	}{
		{nil, JournalDone},
		{fs.ErrPermission, JournalFailed},
		{errors.Join(fs.ErrPermission, ErrUnknown), JournalUnknown},
	} {
		if got := Outcome(test.err).Kind; got != test.want {
			t.Errorf("%v: %s, want %s", test.err, got, test.want)
		}
	}
}

// TestDamage changes each byte of a record, and cuts it at each: it is never read as
// another, and the guest may not be started.
func TestDamage(t *testing.T) {
	j := openJournal(t)
	s := put(t, j, "vm", sourceEntry(StateOwner, 1, 1))
	whole, err := os.ReadFile(s.path)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.MayStart("vm"); err != nil {
		t.Fatal(err)
	}
	want, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	try := func(b []byte) {
		t.Helper()
		if r, err := decodeRecord(b); err == nil && r != want {
			t.Errorf("read as %+v:\n%s", r, b)
		} else if err != nil && !errors.Is(err, ErrDamaged) {
			t.Errorf("%v, want ErrDamaged", err)
		}
	}
	for i := range whole {
		for bit := range 8 {
			b := append([]byte(nil), whole...)
			b[i] ^= 1 << bit
			try(b)
		}
		try(whole[:i])
	}
	for _, b := range [][]byte{nil, whole[:len(whole)/2], append(whole, whole...), make([]byte, maxRecord+1)} {
		if err := os.WriteFile(s.path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load(); !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: %v, want ErrDamaged", len(b), err)
		}
		if err := j.MayStart("vm"); !errors.Is(err, ErrInDoubt) || !errors.Is(err, ErrDamaged) {
			t.Errorf("%d bytes: MayStart: %v", len(b), err)
		}
		if err := j.MayStart("other"); err != nil {
			t.Errorf("another guest is in doubt, too: %v", err)
		}
	}
	// A record in the place of another.
	other := put(t, j, "vm2", sourceEntry(StateOwner, 1, 1))
	if err := os.Rename(other.path, s.path); err != nil {
		t.Fatal(err)
	}
	if err := j.MayStart("vm"); !errors.Is(err, ErrDamaged) {
		t.Errorf("a record of another guest: %v", err)
	}
}
