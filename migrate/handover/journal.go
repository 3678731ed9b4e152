package handover

import (
	"bytes"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/internal/durable"
)

// Journal is a folder with a file for each migration and role, which outlives the
// processes and a crash of the host. Any number of processes use it at once.
type Journal struct{ dir string }

// OpenJournal opens the journal in a folder, which is made if there is none. It has to be
// on a file system that outlives a restart of the host.
func OpenJournal(dir string) (*Journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("migration journal: %w", err)
	}
	// Should the host crash, the folder must not be gone with what is in it.
	if err := durable.SyncPath(filepath.Dir(filepath.Clean(dir))); err != nil {
		return nil, fmt.Errorf("migration journal: folder above: %w", err)
	}
	return &Journal{dir: dir}, nil
}

// Key names a record of the journal: a migration can have both of its sides on one host.
type Key struct {
	VM   string
	Role Role
	ID   ID
}

// Key of the record.
func (r Record) Key() Key { return Key{VM: r.VM, Role: r.Role, ID: r.ID} }

const suffix = ".json"

// file is the name of the record's file. It has the key, so that a record that cannot be
// read any more is known to be about that guest.
func (k Key) file() string { return k.VM + "@" + k.ID.String() + "." + k.Role.String() + suffix }

// parseKey reads what Key.file wrote.
func parseKey(file string) (Key, bool) {
	base, found := strings.CutSuffix(file, suffix)
	vm, rest, cut := strings.Cut(base, "@")
	id, role, dot := strings.Cut(rest, ".")
	k := Key{VM: vm}
	err := errors.Join(checkVM(vm), k.ID.UnmarshalText([]byte(id)), k.Role.UnmarshalText([]byte(role)))
	return k, found && cut && dot && err == nil && k.file() == file
}

func (k Key) check() error {
	if k.Role != RoleSource && k.Role != RoleDestination {
		return fmt.Errorf("role %s: want source or destination", k.Role)
	}
	return checkVM(k.VM)
}

// Errors of the journal.
var (
	// ErrBusy says that another process, or another Slot of this one, uses a record.
	ErrBusy = errors.New("another process takes part in this migration")
	// ErrUnknown says that a record may have been written or not.
	ErrUnknown = errors.New("whether the record will outlive a crash is unknown")
)

// Slot is the place of one record, which nobody else can use until it is closed or this
// process ends. Its methods are not for more than one goroutine at a time.
type Slot struct {
	key  Key
	path string
	lock *os.File
	// Peer is put into the records that are written.
	Peer string
}

// Acquire reserves the place of a record, be there one or not. The error wraps ErrBusy if
// somebody has it. A destination acquires its slot before it says READY, so that nobody
// else answers for it as for a migration that is not known.
func (j *Journal) Acquire(k Key) (*Slot, error) {
	if err := k.check(); err != nil {
		return nil, fmt.Errorf("migration %s: %w", k.ID, err)
	}
	lock, err := os.OpenFile(filepath.Join(j.dir, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("migration journal: %w", err)
	}
	// One byte of one file for each record: no file has to be removed while another
	// process may be about to lock it. Not for each guest: who answers for a migration
	// that it does not know has no name for its guest.
	h := fnv.New64a()
	_, _ = io.WriteString(h, k.ID.String()+k.Role.String())
	place := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: int64(h.Sum64() >> 2), Len: 1}
	if err := unix.FcntlFlock(lock.Fd(), unix.F_OFD_SETLK, &place); err != nil {
		if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
			err = ErrBusy
		}
		return nil, errors.Join(fmt.Errorf("migration %s of %s, %s: %w", k.ID, k.VM, k.Role, err), lock.Close())
	}
	return &Slot{key: k, path: filepath.Join(j.dir, k.file()), lock: lock}, nil
}

// Key of the record.
func (s *Slot) Key() Key { return s.key }

// Write replaces the record, which outlives any crash when Write returns without an
// error. An error wraps ErrUnknown unless the journal is certainly as it was. See
// Outcome.
func (s *Slot) Write(e Entry) error {
	if e.Role != s.key.Role {
		return fmt.Errorf("migration %s: a record of the %s in the slot of the %s", s.key.ID, e.Role, s.key.Role)
	}
	e.Reason = cut(e.Reason)
	r := Record{Entry: e, ID: s.key.ID, VM: s.key.VM, Peer: s.Peer, Time: time.Now().UTC()}
	b, err := r.encode()
	if err != nil {
		return err
	}
	before, err := s.content()
	if err != nil {
		return fmt.Errorf("migration %s: journal: %w", s.key.ID, err)
	}
	err = durable.Replace(s.path, 0o600, func(f *os.File) error {
		_, err := f.Write(b)
		return err
	})
	if err == nil {
		return nil
	}
	err = fmt.Errorf("migration %s: writing %s to the journal: %w; is the disk of %s full or failing?", s.key.ID, e.State, err, filepath.Dir(s.path))
	now, readErr := s.content()
	if readErr == nil && unchanged(before, b, now) {
		return err
	}
	return fmt.Errorf("%w; %w", err, ErrUnknown)
}

// unchanged says that a write that failed left the old record alone, because it did not
// get to the rename. After the rename only the disk knows.
func unchanged(before, written, now []byte) bool {
	return bytes.Equal(now, before) && !bytes.Equal(now, written)
}

// content is the file, nil if there is none.
func (s *Slot) content() ([]byte, error) {
	b, err := readBounded(s.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return b, err
}

// Outcome is the event that ends WriteJournal, from the error of Slot.Write.
func Outcome(err error) Event {
	switch {
	case err == nil:
		return Event{Kind: JournalDone}
	case errors.Is(err, ErrUnknown):
		return Event{Kind: JournalUnknown, Reason: err.Error()}
	}
	return Event{Kind: JournalFailed, Reason: err.Error()}
}

// Load reads the record. The error wraps fs.ErrNotExist if there is none, and ErrDamaged
// if it cannot be told what it says.
func (s *Slot) Load() (Record, error) { return load(s.path, s.key) }

// Remove removes the record, if there is one. Whoever removes one that is not Settled has
// seen to it that the peer does not run the guest, or that this host never will.
func (s *Slot) Remove() error {
	if err := os.Remove(s.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("migration %s: journal: %w", s.key.ID, err)
	}
	return durable.SyncPath(filepath.Dir(s.path))
}

// Close lets others use the record.
func (s *Slot) Close() error { return s.lock.Close() }

func load(path string, k Key) (Record, error) {
	b, err := readBounded(path)
	if err != nil {
		return Record{}, fmt.Errorf("migration %s: journal: %w", k.ID, err)
	}
	r, err := decodeRecord(b)
	if err == nil && r.Key() != k {
		err = fmt.Errorf("%w: it is about migration %s of %s, %s", ErrDamaged, r.ID, r.VM, r.Role)
	}
	if err != nil {
		return Record{}, fmt.Errorf("migration %s of %s, %s: %s: %w", k.ID, k.VM, k.Role, path, err)
	}
	return r, nil
}

// readBounded reads a little more than the longest record, if there is more.
func readBounded(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, maxRecord+1))
	return b, errors.Join(err, f.Close())
}
