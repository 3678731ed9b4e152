package api

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"
	"sync"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"golang.org/x/sys/unix"
)

// levelTrace is below all levels of slog.
const levelTrace = slog.LevelDebug - 4

// logger is the log that a client has asked for, by PUT /logger: what is requested and
// what happens to the guest. Until then nothing is logged.
type logger struct {
	mu    sync.Mutex
	file  *logFile
	log   *slog.Logger
	asked *Logger
	// early is what was to be said before there was a log.
	early []string
}

// maxEarly bounds early.
const maxEarly = 16

// logFile is a file or a named pipe. What a pipe that nobody reads has no room for is
// lost: neither requests nor the guest wait for it.
type logFile struct {
	mu sync.Mutex
	fd int // -1 when closed
}

func openLog(path string) (*logFile, error) {
	// Also for reading, or a pipe could not be opened before somebody reads it.
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_APPEND|unix.O_CREAT|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	return &logFile{fd: fd}, nil
}

// Write writes a line.
func (f *logFile) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return unix.Write(f.fd, p)
}

// Close closes the file. What is written later is lost.
func (f *logFile) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	fd := f.fd
	f.fd = -1
	return unix.Close(fd)
}

func (s *Server) putLogger(r *request) (any, error) {
	var l Logger
	if err := r.read(&l); err != nil {
		return nil, err
	}
	return nil, s.setLogger(l)
}

func (s *Server) setLogger(l Logger) error {
	return within("Logger", beforeStart(s.vm, func() error { return s.logger.set(l) }))
}

// beforeStart calls f if the guest is not started.
func beforeStart(vm *vmm.VM, f func() error) error {
	switch vm.Phase() {
	case vmm.NotStarted:
		return f()
	case vmm.Ended:
		return vmm.ErrEnded
	}
	return vmm.ErrStarted
}

// set changes the log to what a client wants. Without a path the file stays.
func (l *logger) set(want Logger) error {
	level, off, err := parseLevel(want.Level)
	if err != nil {
		return err
	}
	if want.Module != "" {
		return fmt.Errorf("module %s: godwit's log is not divided into modules: leave it out", want.Module)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if want.Path != "" {
		f, err := openLog(want.Path)
		if err != nil {
			return err
		}
		if l.file != nil {
			_ = l.file.Close()
		}
		l.file = f
	} else if l.asked != nil {
		want.Path = l.asked.Path
	}
	l.asked, l.log = &want, nil
	if off || l.file == nil {
		return nil
	}
	l.log = slog.New(slog.NewTextHandler(l.file, &slog.HandlerOptions{
		Level: level, AddSource: want.ShowOrigin,
		ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
			if a.Key == slog.LevelKey && !want.ShowLevel {
				return slog.Attr{}
			}
			return a
		},
	}))
	for _, text := range l.early {
		l.log.Warn(text)
	}
	l.early = nil
	return nil
}

// parseLevel is a level of Firecracker's log, in any spelling.
func parseLevel(name string) (level slog.Level, off bool, err error) {
	switch strings.ToLower(name) {
	case "off":
		return 0, true, nil
	case "error":
		return slog.LevelError, false, nil
	case "warn", "warning":
		return slog.LevelWarn, false, nil
	case "", "info":
		return slog.LevelInfo, false, nil
	case "debug":
		return slog.LevelDebug, false, nil
	case "trace":
		return levelTrace, false, nil
	}
	return 0, false, fmt.Errorf("level %q: want Error, Warning, Info, Debug, Trace or Off", name)
}

func (l *logger) current() *slog.Logger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.log
}

// config is what a client has asked for, nil for nothing.
func (l *logger) config() *Logger {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked
}

// warn says what a client should know of a request that is carried out.
func (l *logger) warn(text string) {
	log := l.current()
	if log != nil {
		log.Warn(text)
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.early) < maxEarly {
		l.early = append(l.early, text)
	}
}

// request logs a request and what is wrong with it.
func (l *logger) request(r *http.Request, err error) {
	log := l.current()
	switch {
	case log == nil:
	case err != nil:
		log.Error("request refused", "method", r.Method, "path", r.URL.Path, "error", message(err))
	default:
		log.Info("request", "method", r.Method, "path", r.URL.Path)
	}
}

// event logs an event of the guest.
func (l *logger) event(e vmm.Event) {
	log := l.current()
	if log == nil {
		return
	}
	level, attrs := slog.LevelInfo, []slog.Attr{slog.String("event", string(e.Kind))}
	if e.Kind == vmm.EventEnded {
		attrs = append(attrs, slog.String("outcome", e.Outcome.String()))
	}
	if e.Path != "" {
		attrs = append(attrs, slog.String("path", e.Path))
	}
	if e.Err != nil {
		level = slog.LevelWarn
		attrs = append(attrs, slog.String("error", e.Err.Error()))
	}
	log.LogAttrs(context.Background(), level, "guest", attrs...)
}

func (l *logger) close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file == nil {
		return nil
	}
	f := l.file
	l.file, l.log = nil, nil
	return f.Close()
}
