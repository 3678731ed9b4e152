package bench

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// reportVersion changes when a reader of older reports would misread a newer
// one.
const reportVersion = 1

// Report is the outcome of a run.
type Report struct {
	Version int       `json:"version"`
	Date    time.Time `json:"date"`
	// Commit is the version of godwit that did the measuring.
	Commit string       `json:"commit"`
	Quick  bool         `json:"quick"`
	Host   Host         `json:"host"`
	Cases  []CaseReport `json:"cases"`
}

// CaseReport is the outcome of one case: a result, or the reason why there is
// none.
type CaseReport struct {
	Name    string  `json:"name"`
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"` // that the case took
	Skipped string  `json:"skipped,omitempty"`
	Error   string  `json:"error,omitempty"`
	*Result
}

// Failed lists the cases that ended with an error.
func (r *Report) Failed() []string {
	var all []string
	for _, c := range r.Cases {
		if c.Error != "" {
			all = append(all, c.Name)
		}
	}
	return all
}

// WriteFile writes the report as JSON. The file appears complete or not at
// all, also across a crash of the host.
func (r *Report) WriteFile(path string) error {
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("benchmark report: %w", err)
	}
	if err := writeFile(path, append(data, '\n')); err != nil {
		return fmt.Errorf("benchmark report: %w", err)
	}
	return nil
}

// writeFile replaces path by way of a temporary file in the same folder. The
// data reaches the disk before the name does.
func writeFile(path string, data []byte) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".tmp-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Chmod(0o644)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
