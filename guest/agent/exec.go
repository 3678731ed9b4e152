package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// drainTime is how long output may take to come after the command has
	// ended: a terminal hands it on a little later. Processes that the
	// command left behind can hold its output open for ever.
	drainTime = 200 * time.Millisecond
	// drainBytes is as much as a pipe holds, so that what is read after
	// the command's end includes all that it had written.
	drainBytes = 64 << 10
)

// exec runs a command with the session's streams.
func (c *connection) exec(s *serverSession, req request) (Exit, error) {
	if len(req.Args) == 0 {
		return Exit{}, errors.New("no command to run")
	}
	env := mergeEnv(os.Environ(), req.Env)
	file, err := lookPath(req.Args[0], req.Dir, env)
	if _, direrr := os.Stat(req.Dir); req.Dir != "" && direrr != nil {
		err = fmt.Errorf("working directory: %v", direrr) // not wrapped: the command may well exist
	}
	if err != nil {
		return s.cannotRun(req, err)
	}
	std, err := openStdio(req.TTY)
	if err != nil {
		return Exit{}, fmt.Errorf("run %s: %w", req.Args[0], err)
	}
	defer std.close()
	child, err := s.start(c.Reaper, file, req.Args, &syscall.ProcAttr{
		Dir:   req.Dir,
		Env:   env,
		Files: std.childFiles(),
		Sys:   std.attributes(),
	}, std.terminal)
	if err != nil {
		return s.cannotRun(req, err)
	}
	std.closeChildEnds()

	var ended atomic.Bool
	var outputs sync.WaitGroup
	for _, o := range std.outputs {
		outputs.Go(func() { s.copyOutput(o, &ended) })
	}
	go s.copyInput(std)
	exit := child.Wait()
	ended.Store(true)
	for _, o := range std.outputs {
		o.file.SetReadDeadline(time.Now().Add(drainTime))
	}
	outputs.Wait()
	s.mu.Lock()
	s.child, s.terminal = nil, nil
	s.mu.Unlock()
	return exit, nil
}

// start starts the command, unless the client has lost interest already.
func (s *serverSession) start(r *Reaper, file string, args []string, attr *syscall.ProcAttr, terminal *os.File) (*Child, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.abandoned {
		return nil, syscall.ECANCELED
	}
	child, err := r.Start(file, args, attr)
	if err == nil {
		s.child, s.terminal = child, terminal
	}
	return child, err
}

// cannotRun ends a session whose command does not start, as a shell would.
func (s *serverSession) cannotRun(req request, err error) (Exit, error) {
	code := 126
	if errors.Is(err, fs.ErrNotExist) {
		code = 127
	}
	message := fmt.Sprintf("%s: %v\n", req.Args[0], err)
	to := stderr
	if req.TTY != nil {
		to, message = stdout, strings.ReplaceAll(message, "\n", "\r\n")
	}
	// A client that does not take the message learns from the code.
	s.write(to, []byte(message))
	return Exit{Code: code}, nil
}

// notFoundError is the answer for a command that is nowhere in the PATH.
type notFoundError struct{}

// Error says it as shells do.
func (notFoundError) Error() string { return "command not found" }

// Is makes it an fs.ErrNotExist.
func (notFoundError) Is(target error) bool { return target == fs.ErrNotExist }

// lookPath finds the file of a command in the PATH of env.
func lookPath(name, dir string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		if !filepath.IsAbs(name) && dir != "" {
			// execve(2) comes after the change of directory.
			_, err := executable(filepath.Join(dir, name))
			return name, err
		}
		return executable(name)
	}
	path := ""
	for _, e := range env {
		if value, ok := strings.CutPrefix(e, "PATH="); ok {
			path = value
		}
	}
	failure := error(notFoundError{})
	for _, d := range filepath.SplitList(path) {
		file, err := executable(filepath.Join(d, name))
		if err == nil {
			return file, nil
		}
		if errors.Is(err, fs.ErrPermission) {
			failure = err
		}
	}
	return "", failure
}

// mergeEnv adds variables to an environment; the added ones win.
func mergeEnv(base, extra []string) []string {
	var env []string
	for i, e := range slices.Concat(base, extra) {
		name, _, _ := strings.Cut(e, "=")
		overridden := slices.ContainsFunc(extra[max(0, i+1-len(base)):], func(later string) bool {
			return strings.HasPrefix(later, name+"=")
		})
		if !overridden {
			env = append(env, e)
		}
	}
	return env
}

// executable checks that a file can be a command.
func executable(file string) (string, error) {
	info, err := os.Stat(file)
	switch {
	case err != nil:
		return "", err
	case info.IsDir():
		return "", fmt.Errorf("is a directory: %w", fs.ErrPermission)
	case info.Mode()&0o111 == 0:
		return "", fs.ErrPermission
	}
	return file, nil
}

// copyInput feeds the command what the client sends.
func (s *serverSession) copyInput(std *stdio) {
	_, err := io.CopyBuffer(onlyWriter{std.input}, onlyReader{s.in[stdin]}, make([]byte, maxData))
	if err != nil {
		// The command does not read: the client gets no more credit.
		s.in[stdin].discard()
	}
	std.endInput()
}

// copyOutput sends the client what the command writes, up to the end of file
// or, since processes that outlive the command may hold it open, until all is
// sent that the command itself wrote.
func (s *serverSession) copyOutput(o output, ended *atomic.Bool) {
	buf := make([]byte, maxData)
	for rest := drainBytes; rest > 0; {
		if ended.Load() {
			o.file.SetReadDeadline(time.Now().Add(drainTime))
		}
		late := ended.Load()
		n, err := o.file.Read(buf)
		if werr := s.write(o.stream, buf[:n]); werr != nil {
			// The client has gone: the command finds its output closed.
			break
		}
		if err != nil {
			break
		}
		if late {
			rest -= n
		}
	}
	// An error means that the connection has ended.
	s.finish(o.stream)
	if o.file != s.terminalFile() {
		o.file.Close()
	}
}

func (s *serverSession) terminalFile() *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.terminal
}

func (s *serverSession) signal(sig syscall.Signal) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.child != nil {
		// The one error there can be, a bad number, is the client's own.
		s.child.Signal(sig)
	}
}

func (s *serverSession) resize(payload []byte) error {
	if len(payload) != 4 {
		return fmt.Errorf("%w: resize with %d bytes", ErrCorrupt, len(payload))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.terminal == nil {
		return nil
	}
	return setSize(s.terminal, Size{
		Rows: binary.LittleEndian.Uint16(payload),
		Cols: binary.LittleEndian.Uint16(payload[2:]),
	})
}

func setSize(terminal *os.File, size Size) error {
	raw, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	var failure error
	err = raw.Control(func(fd uintptr) {
		failure = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: size.Rows, Col: size.Cols})
	})
	return errors.Join(err, failure)
}
