package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/godwit-vmm/godwit/internal/rundir"
	"github.com/godwit-vmm/godwit/migrate/handover"
)

// journalDir is where this host's journal of migrations is.
func journalDir() (string, error) {
	state, err := rundir.StateDir()
	return filepath.Join(state, "migrations"), err
}

// openJournal opens the journal, which is made if there is none.
func openJournal() (*handover.Journal, error) {
	dir, err := journalDir()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return nil, err
	}
	return handover.OpenJournal(dir)
}

// mayStart says whether a guest of this name may be started here: it may be another
// host's. Most hosts have no journal, and nothing to ask.
func mayStart(name string) error {
	dir, err := journalDir()
	if err != nil {
		return nil // there is no home, and no journal in it
	}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	j, err := handover.OpenJournal(dir)
	if err != nil {
		return err
	}
	return j.MayStart(name)
}
