package api

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/godwit-vmm/godwit/internal/vmm"
	"github.com/godwit-vmm/godwit/migrate/handover"
	"github.com/godwit-vmm/godwit/migrate/live"
	"github.com/godwit-vmm/godwit/migrate/stream"
)

// defaultDowntime is how long a guest may stand still unless a client says otherwise.
const defaultDowntime = 300 * time.Millisecond

// maxMillis bounds times that clients give, in milliseconds: a year.
const maxMillis = 365 * 24 * 3600 * 1000

// migration is the one that is under way, or was the last.
type migration struct {
	mu     sync.Mutex
	status MigrationStatus
	// cancel is nil when none is under way.
	cancel context.CancelCauseFunc
	limit  *stream.Limiter
	orders chan handover.Event
}

// errCanceled is why a migration ends that a client has called off.
var errCanceled = errors.New("the migration was canceled, and the guest goes on here")

// request is what a Migration asks for.
func (m *Migration) request() (vmm.MigrateRequest, error) {
	r := vmm.MigrateRequest{Addr: m.Address, Connections: m.Connections, Limit: stream.NewLimiter(m.Bandwidth), WithDisks: m.WithDisks}
	switch {
	case m.Connections < 0 || m.Connections > live.MaxConnections:
		return r, fmt.Errorf("connections %d: want 1 to %d", m.Connections, live.MaxConnections)
	case m.Downtime < 0 || m.Downtime > maxMillis || m.Timeout < 0 || m.Timeout > maxMillis:
		return r, fmt.Errorf("downtime_ms %d, timeout_ms %d: want at most a year", m.Downtime, m.Timeout)
	}
	var err error
	if r.Compress, err = compression(m.Compress); err != nil {
		return r, err
	}
	if r.TLS, err = tlsOf(m.Cert, m.Key, m.CA); err != nil {
		return r, err
	}
	r.Policy = stream.Policy{
		Downtime: time.Duration(m.Downtime) * time.Millisecond, Timeout: time.Duration(m.Timeout) * time.Millisecond,
		AutoConverge: m.AutoConverge,
	}
	if r.Policy.PostCopy, err = postCopy(m.PostCopy); err != nil {
		return r, err
	}
	if m.Downtime == 0 {
		r.Policy.Downtime = defaultDowntime
	}
	return r, nil
}

func compression(name string) (stream.Compression, error) {
	switch name {
	case "", "none":
		return stream.None, nil
	case "zstd":
		return stream.Zstd, nil
	case "auto":
		return stream.Auto, nil
	}
	return stream.None, fmt.Errorf("compress %q: want none, zstd or auto", name)
}

func postCopy(name string) (stream.PostCopyPolicy, error) {
	switch name {
	case "", "never":
		return stream.PostCopyNever, nil
	case "auto":
		return stream.PostCopyAuto, nil
	case "now":
		return stream.PostCopyNow, nil
	}
	return stream.PostCopyNever, fmt.Errorf("post_copy %q: want never, auto or now", name)
}

func tlsOf(cert, key, ca string) (*tls.Config, error) {
	if cert == "" && key == "" && ca == "" {
		return nil, nil
	}
	return stream.LoadTLS(cert, key, ca, false)
}

// putMigration moves the guest and answers with lines of JSON as long as that takes. A
// client that goes away calls it off.
func (s *Server) putMigration(w http.ResponseWriter, r *request) error {
	var m Migration
	if err := r.read(&m); err != nil {
		return err
	}
	request, err := m.request()
	if err != nil {
		return err
	}
	if s.o.Journal == nil {
		return errors.New("this process keeps no journal of migrations")
	}
	if request.Journal, err = s.o.Journal(); err != nil {
		return err
	}
	if s.vm.Phase() == vmm.NotStarted {
		return vmm.ErrNotStarted
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	if err := s.migration.begin(m.Address, cancel, &request); err != nil {
		return err
	}
	// The server's time for a request is not for this one, nor is it to be called off
	// when that is over.
	_ = http.NewResponseController(w).SetReadDeadline(time.Time{})
	lines := newStatusLines(w, m.Address)
	request.Progress = func(p live.Progress) {
		s.migration.progress(p)
		lines.progress(p)
	}
	request.Moved = func(report live.Report) {
		lines.end(s.migration.end(MigrationStatus{Address: m.Address, Report: &report}))
	}
	if _, err := s.vm.Migrate(ctx, request); err != nil {
		if ctx.Err() != nil && errors.Is(err, context.Canceled) {
			err = errCanceled
		}
		lines.end(s.migration.end(MigrationStatus{Address: m.Address, Error: message(err)}))
	}
	return nil
}

// statusLines are lines on their way to a client. The migration does not wait for one that
// does not read: it misses lines, but for the last.
type statusLines struct {
	address string
	lines   chan MigrationStatus
	written chan struct{}
}

// clientTime is how long a client may take to read a line.
const clientTime = time.Second

func newStatusLines(w http.ResponseWriter, address string) *statusLines {
	l := &statusLines{address: address, lines: make(chan MigrationStatus, 64), written: make(chan struct{})}
	w.Header().Set("Content-Type", "application/x-ndjson")
	go func() {
		defer close(l.written)
		control := http.NewResponseController(w)
		for s := range l.lines {
			_ = control.SetWriteDeadline(time.Now().Add(clientTime))
			if json.NewEncoder(w).Encode(s) == nil {
				_ = control.Flush()
			}
		}
	}()
	return l
}

func (l *statusLines) progress(p live.Progress) {
	select {
	case l.lines <- MigrationStatus{Address: l.address, Progress: &p}:
	default:
	}
}

// end writes the last line. There is no progress any more.
func (l *statusLines) end(s MigrationStatus) {
	s.Progress = nil
	l.lines <- s
	close(l.lines)
	<-l.written
}

func (m *migration) begin(address string, cancel context.CancelCauseFunc, r *vmm.MigrateRequest) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cancel != nil {
		return fmt.Errorf("the guest is moving to %s already", m.status.Address)
	}
	m.status, m.cancel, m.limit = MigrationStatus{Address: address}, cancel, r.Limit
	m.orders = make(chan handover.Event, 1)
	r.Orders = m.orders
	return nil
}

func (m *migration) progress(p live.Progress) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.status.Progress = &p
}

func (m *migration) end(s MigrationStatus) MigrationStatus {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Progress = m.status.Progress
	m.status, m.cancel = s, nil
	return s
}

func (s *Server) getMigration(*request) (any, error) {
	s.migration.mu.Lock()
	defer s.migration.mu.Unlock()
	status := s.migration.status
	if m, missing := s.vm.Missing(); missing {
		status.Missing = &MissingMemory{Bytes: m.Bytes}
		if m.Waits != nil {
			status.Missing.Reason = message(m.Waits)
		}
	}
	return status, nil
}

// errMemoryGivenUp is why a guest ends of which a client has given up the memory that was
// still at the other host.
var errMemoryGivenUp = errors.New("the rest of the guest's memory was given up by an operator, and the guest is lost")

func (s *Server) patchMigration(r *request) (any, error) {
	var u MigrationUpdate
	if err := r.read(&u); err != nil {
		return nil, err
	}
	m := &s.migration
	m.mu.Lock()
	defer m.mu.Unlock()
	follows := m.cancel != nil && m.phase() == live.PhasePostCopy
	if _, missing := s.vm.Missing(); u.Action == "give-up" && (missing || follows) {
		s.vm.Kill(errMemoryGivenUp)
		return nil, nil
	}
	if m.cancel == nil {
		return nil, errors.New("the guest is not moving")
	}
	if err := m.act(&u); err != nil {
		return nil, err
	}
	if u.Bandwidth != nil {
		m.limit.Set(*u.Bandwidth)
	}
	return nil, nil
}

// phase is how far the migration that is under way has come. The caller holds mu.
func (m *migration) phase() live.Phase {
	if m.status.Progress == nil {
		return live.PhaseConnect
	}
	return m.status.Progress.Phase
}

// act does what a client wants of a migration that is under way. The caller holds mu.
func (m *migration) act(u *MigrationUpdate) error {
	letGo := m.phase().LetGo()
	switch {
	case u.Action == "":
		return nil
	case m.phase() == live.PhasePostCopy:
		return errors.New("the guest runs at the other host, and the rest of its memory follows: give-up ends it there")
	case u.Action == "cancel" && letGo:
		return errors.New("the guest was let go: only the other host, or run-here and give-up, decide now")
	case u.Action == "cancel":
		m.cancel(errCanceled)
		return nil
	case u.Action == "run-here" && u.Statement == "":
		return errors.New("run-here needs a statement: how is the other host kept from ever running the guest?")
	case u.Action == "run-here" && letGo:
		return m.order(handover.Event{Kind: handover.ForceRun, Reason: u.Statement})
	case u.Action == "give-up" && letGo:
		return m.order(handover.Event{Kind: handover.ForceGiveUp, Reason: u.Statement})
	case u.Action == "run-here" || u.Action == "give-up":
		return errors.New("the guest was not let go, and runs here: to call the migration off, cancel it")
	}
	return fmt.Errorf("action %q: want cancel, run-here or give-up", u.Action)
}

func (m *migration) order(e handover.Event) error {
	select {
	case m.orders <- e:
		return nil
	default:
		return errors.New("an order is being carried out already")
	}
}
