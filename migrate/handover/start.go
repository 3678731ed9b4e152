package handover

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// Found is a record of the journal. Either Err or Record is set.
type Found struct {
	Key
	Record Record
	// Err wraps ErrDamaged, or says why the record could not be read.
	Err error
}

// maxRecords is the largest number of records that are looked at together. Those of other
// guests do not count: however many have come and gone, a guest can be started.
const maxRecords = 10000

// List reads all records, in no order. Other files are not looked at.
func (j *Journal) List() ([]Found, error) {
	return j.matching(func(Key) bool { return true })
}

// Of reads the records of a migration, by its ID: at most one of each role, unless
// somebody has copied files.
func (j *Journal) Of(id ID) ([]Found, error) {
	return j.matching(func(k Key) bool { return k.ID == id })
}

func (j *Journal) of(vm string) ([]Found, error) {
	return j.matching(func(k Key) bool { return k.VM == vm })
}

// matching reads the records whose keys match.
func (j *Journal) matching(match func(Key) bool) ([]Found, error) {
	var keys []Key
	err := j.scan(func(file string) error {
		k, ok := parseKey(file)
		if !ok || !match(k) {
			return nil
		}
		if keys = append(keys, k); len(keys) > maxRecords {
			return fmt.Errorf("more than %d records in %s: remove those of guests that are not needed, with `godwit migration resolve NAME --forget`", maxRecords, j.dir)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("migration journal: %w", err)
	}
	var all []Found
	for _, k := range keys {
		r, err := load(filepath.Join(j.dir, k.file()), k)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		all = append(all, Found{Key: k, Record: r, Err: err})
	}
	return all, nil
}

// scan calls do with the name of each file in the journal's folder, some at a time.
func (j *Journal) scan(do func(file string) error) error {
	f, err := os.Open(j.dir)
	if err != nil {
		return err
	}
	defer f.Close()
	for {
		const some = 1024
		files, err := f.Readdirnames(some)
		for _, file := range files {
			if err := do(file); err != nil {
				return err
			}
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// Errors of MayStart.
var (
	// ErrHandedOver says that the guest is another host's.
	ErrHandedOver = errors.New("the guest was handed over to another host")
	// ErrInDoubt says that it is not known whether the guest is another host's.
	ErrInDoubt = errors.New("the guest may be another host's")
)

// MayStart says whether a guest of this name may be started on this host, from its disks
// or a snapshot; nothing starts one without asking (rule 5). The error wraps ErrHandedOver
// or ErrInDoubt if it must not.
func (j *Journal) MayStart(vm string) error {
	_, err := j.Epoch(vm)
	return err
}

// Epoch is the one in which this host owns the guest of this name, 1 if the journal does
// not know the guest. The error is that of MayStart.
func (j *Journal) Epoch(vm string) (uint64, error) {
	found, err := j.of(vm)
	if err != nil {
		return 0, err
	}
	owned, away, err := turns(found)
	// A guest that was given away in an epoch and came back did so in a later one.
	if err == nil && away.Epoch >= owned {
		err = elsewhere(away)
	}
	if err != nil {
		return 0, err
	}
	return owned, nil
}

// turns are the newest epoch in which this host owned a guest, and the newest record by
// which it gave the guest away.
func turns(found []Found) (owned uint64, away Record, err error) {
	owned = 1
	for _, f := range found {
		switch {
		case f.Err != nil:
			return 0, Record{}, damaged(f)
		case f.Record.State == StateOwner:
			owned = max(owned, f.Record.Epoch)
		case f.Record.State != StateRefused && f.Record.Epoch > away.Epoch:
			away = f.Record
		}
	}
	return owned, away, nil
}

// MayCome says whether a guest may come under this name that another host owns in an
// epoch. One that this host gave away comes back in a later epoch than that, or it is
// another guest, or an old copy: were it taken, nobody could start it here, nor ask what
// became of the one that left. The error wraps ErrHandedOver or ErrInDoubt.
func (j *Journal) MayCome(vm string, epoch uint64) error {
	found, err := j.of(vm)
	if err != nil {
		return err
	}
	_, away, err := turns(found)
	if err == nil && away.Epoch >= epoch {
		err = fmt.Errorf("the guest that comes, in epoch %d, is another or older one than the guest of this name that left here in epoch %d: have it come under another name (godwit receive --name), or: %w", epoch, away.Epoch, elsewhere(away))
	}
	return err
}

// resolve is the command about a guest that a user is told.
func resolve(vm, flags string) string { return "`godwit migration resolve " + vm + flags + "`" }

func damaged(f Found) error {
	return fmt.Errorf("guest %s: %w: %w; find out where it runs, and remove the record with %s", f.VM, ErrInDoubt, f.Err, resolve(f.VM, " --forget"))
}

func elsewhere(r Record) error {
	why, todo := ErrHandedOver, "look for it there; if this is another guest of the same name, remove the record with "+resolve(r.VM, " --forget")
	if r.State == StateReleased {
		why, todo = ErrInDoubt, "ask the other host with "+resolve(r.VM, "")+"; if it can never run it any more, say "+resolve(r.VM, ` --run-here --fenced "why it cannot"`)
	}
	return fmt.Errorf("guest %s: %w: %s at %s, migration %s, state %s; %s",
		r.VM, why, orUnknown(r.Peer), r.Time.Format(time.RFC3339), r.ID, r.State, todo)
}

func orUnknown(peer string) string {
	if peer == "" {
		return "an unknown address"
	}
	return peer
}

// Unsettled are the records that a process of this host has to take up after a restart,
// with RestoreSource or RestoreDestination, unless another process has: the peer may ask,
// or has to be asked.
func (j *Journal) Unsettled() ([]Record, error) {
	all, err := j.List()
	newest := newestEpochs(all)
	var open []Record
	for _, f := range all {
		if f.Err == nil && !f.Record.done(newest) {
			open = append(open, f.Record)
		}
	}
	return open, err
}

// newestEpochs are the newest epochs in which this host had each guest.
func newestEpochs(all []Found) map[string]uint64 {
	newest := make(map[string]uint64)
	for _, f := range all {
		if f.Err == nil && f.Record.State != StateRefused {
			newest[f.VM] = max(newest[f.VM], f.Record.Epoch)
		}
	}
	return newest
}

// done says that nobody will ask about a record, and nobody is to be asked. A source that
// let the guest go, and got it again, need not ask any more who took it.
func (r Record) done(newest map[string]uint64) bool {
	return r.Settled || r.Role == RoleSource && r.Epoch < newest[r.VM]
}
