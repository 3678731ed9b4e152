package handover

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// Found is a record of the journal. Either Err or Record is set.
type Found struct {
	Key
	Record Record
	// Err wraps ErrDamaged, or says why the record could not be read.
	Err error
}

// maxFiles is the largest number of files in a journal.
const maxFiles = 10000

// List reads all records, in no order. Other files are not looked at.
func (j *Journal) List() ([]Found, error) {
	files, err := names(j.dir)
	if err != nil {
		return nil, fmt.Errorf("migration journal: %w", err)
	}
	var all []Found
	for _, file := range files {
		k, ok := parseKey(file)
		if !ok {
			continue
		}
		r, err := load(filepath.Join(j.dir, file), k)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed meanwhile
		}
		all = append(all, Found{Key: k, Record: r, Err: err})
	}
	return all, nil
}

func names(dir string) ([]string, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	files, err := f.Readdirnames(maxFiles + 1)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	if len(files) > maxFiles {
		err = fmt.Errorf("more than %d files in %s: remove records that are settled", maxFiles, dir)
	}
	return files, errors.Join(err, f.Close())
}

func (j *Journal) of(vm string) ([]Found, error) {
	all, err := j.List()
	var found []Found
	for _, f := range all {
		if f.VM == vm {
			found = append(found, f)
		}
	}
	return found, err
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
	owned := uint64(1)
	// The newest record by which the guest was given away, and the newest epoch that
	// it came in. A guest that was given away in an epoch and came back did so in a
	// later one.
	var away Record
	for _, f := range found {
		switch {
		case f.Err != nil:
			return 0, damaged(f)
		case f.Record.State == StateOwner:
			owned = max(owned, f.Record.Epoch)
		case f.Record.State != StateRefused && f.Record.Epoch > away.Epoch:
			away = f.Record
		}
	}
	if away.Epoch >= owned {
		return 0, elsewhere(away)
	}
	return owned, nil
}

const resolve = "`godwit migration resolve`"

func damaged(f Found) error {
	return fmt.Errorf("guest %s: %w: %w; find out where it runs, and remove the record with %s", f.VM, ErrInDoubt, f.Err, resolve)
}

func elsewhere(r Record) error {
	why, todo := ErrHandedOver, "look for it there; if this is another guest of the same name, remove the record with "+resolve
	if r.State == StateReleased {
		why, todo = ErrInDoubt, "it is decided when both hosts are up and reach each other; else make sure that the other cannot run it, and use "+resolve
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

// Prune removes what no longer says anything of a guest: records that are done and that a
// newer epoch has overtaken, and what writes that were cut off have left. Records in use
// stay.
func (j *Journal) Prune(vm string) error {
	found, err := j.of(vm)
	if err != nil {
		return err
	}
	newest := newestEpochs(found)
	var errs []error
	for _, f := range found {
		if f.Err == nil && f.Record.done(newest) && f.Record.Epoch < newest[vm] {
			errs = append(errs, j.prune(f.Key))
		}
	}
	return errors.Join(append(errs, j.removeTorn(vm))...)
}

func (j *Journal) prune(k Key) error {
	s, err := j.Acquire(k)
	if errors.Is(err, ErrBusy) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(s.Remove(), s.Close())
}

// removeTorn removes the temporary files of records that nobody is writing.
func (j *Journal) removeTorn(vm string) error {
	files, err := names(j.dir)
	if err != nil {
		return fmt.Errorf("migration journal: %w", err)
	}
	var errs []error
	for _, file := range files {
		hidden, dot := strings.CutPrefix(file, ".")
		base, _, found := strings.Cut(hidden, suffix+".")
		k, ok := parseKey(base + suffix)
		if !dot || !found || !ok || k.VM != vm {
			continue
		}
		s, err := j.Acquire(k)
		if errors.Is(err, ErrBusy) {
			continue
		}
		if err == nil {
			err = errors.Join(os.Remove(filepath.Join(j.dir, file)), s.Close())
		}
		if !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
