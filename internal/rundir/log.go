package rundir

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
)

// logLimit bounds a log: the folder may lie in memory. The part before the last
// logLimit bytes at the most is kept in a second file.
const logLimit = 512 << 10

// Log is a file in a machine's folder that holds the end of what was written to
// it: between one and two times logLimit, the older part in a file whose name
// ends in ".1".
type Log struct {
	path string

	mu   sync.Mutex
	f    *os.File
	size int64
}

// OpenLog makes a log.
func (d *Dir) OpenLog(file string) (*Log, error) {
	l := &Log{path: d.Path(file)}
	if err := l.open(); err != nil {
		return nil, err
	}
	return l, nil
}

func (l *Log) open() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("log: %w", err)
	}
	l.f, l.size = f, 0
	return nil
}

// Write appends p.
func (l *Log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.size > 0 && l.size+int64(len(p)) > logLimit {
		err := errors.Join(l.f.Close(), os.Rename(l.path, l.path+".1"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return 0, err
		}
		if err := l.open(); err != nil {
			return 0, err
		}
	}
	n, err := l.f.Write(p)
	l.size += int64(n)
	return n, err
}

// Close ends the log. The files stay.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}
