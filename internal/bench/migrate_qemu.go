package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// qemuTraveller is a guest in QEMU that moves from process to process.
type qemuTraveller struct {
	env     *Env
	program string
	memory  uint64
	// memfd has guest memory in a memfd, where the case can look at it. Without it
	// QEMU uses memory as it does by default, in huge pages where it gets them.
	memfd bool

	at   *qmp
	hops int
}

// qemuMove says how a guest of QEMU's moves.
type qemuMove struct {
	multifd      bool
	autoConverge bool
	// downtime is in ms, bandwidth in bytes a second; 0 is QEMU's downtime, and no
	// limit.
	downtime  int
	bandwidth uint64
}

// startQEMUTraveller starts a guest and waits until it says that it is ready. It is to be
// closed also after an error.
func startQEMUTraveller(ctx context.Context, e *Env, program string, memory uint64, memfd bool) (*qemuTraveller, error) {
	q := &qemuTraveller{env: e, program: program, memory: memory, memfd: memfd}
	e.progress("starting the guest in QEMU")
	at, said, err := q.launch(ctx)
	if err != nil {
		return q, err
	}
	q.at = at
	return q, poll(ctx, readyLimit, func() (bool, error) {
		info, err := os.Stat(said)
		return err == nil && info.Size() > 0, nil
	})
}

// launch starts a QEMU for the guest. said is the file with what it writes to its console.
func (q *qemuTraveller) launch(ctx context.Context, args ...string) (at *qmp, said string, err error) {
	said = filepath.Join(q.env.Dir, "qemu-serial-"+strconv.Itoa(q.hops))
	argv, err := pausableQEMU(int(q.memory>>20), append(args, "-qmp", "stdio", "-serial", "file:"+said, "-kernel", q.program)...)
	if err != nil {
		return nil, "", err
	}
	if q.memfd {
		argv = append(argv, "-machine", "memory-backend=ram", "-object", fmt.Sprintf("memory-backend-memfd,id=ram,size=%d", q.memory))
	}
	at, err = launchQMP(ctx, argv)
	return at, said, err
}

// move has the guest move to another process. If it does not, it is not to be used any
// more.
func (q *qemuTraveller) move(ctx context.Context, how qemuMove) (m migration, err error) {
	q.hops++
	to, _, err := q.launch(ctx, "-incoming", "defer")
	if err != nil {
		return m, err
	}
	defer func() {
		if err != nil {
			to.close()
		}
	}()
	for _, side := range []*qmp{q.at, to} {
		if err := how.set(side); err != nil {
			return m, err
		}
	}
	if err := to.do("migrate-incoming", map[string]any{"uri": "tcp:127.0.0.1:0"}, nil); err != nil {
		return m, err
	}
	port, err := to.incomingPort()
	if err != nil {
		return m, err
	}
	if m, err = q.at.migrateTo(ctx, "tcp:127.0.0.1:"+port); err != nil {
		return m, err
	}
	// The source has sent all; the guest runs when the destination says so, too.
	err = poll(ctx, processLimit, func() (bool, error) {
		var at migration
		err := to.do("query-migrate", nil, &at)
		return at.Status == "completed", err
	})
	if err != nil {
		return m, err
	}
	q.at.close()
	q.at = to
	return m, nil
}

// set sets the parameters on one side.
func (how qemuMove) set(side *qmp) error {
	capabilities := []map[string]any{
		{"capability": "multifd", "state": how.multifd},
		{"capability": "auto-converge", "state": how.autoConverge},
	}
	parameters := map[string]any{"max-bandwidth": uint64(64 << 30)}
	if how.multifd {
		parameters["multifd-channels"] = 2
	}
	if how.bandwidth > 0 {
		parameters["max-bandwidth"] = how.bandwidth
	}
	if how.downtime > 0 {
		parameters["downtime-limit"] = how.downtime
	}
	return errors.Join(
		side.do("migrate-set-capabilities", map[string]any{"capabilities": capabilities}, nil),
		side.do("migrate-set-parameters", parameters, nil))
}

// incomingPort is where a destination listens.
func (q *qmp) incomingPort() (string, error) {
	var at struct {
		Socket []struct{ Port string } `json:"socket-address"`
	}
	if err := q.do("query-migrate", nil, &at); err != nil {
		return "", err
	}
	if len(at.Socket) == 0 {
		return "", errors.New("QEMU does not say where it listens")
	}
	return at.Socket[0].Port, nil
}

// memoryTime is how long the memory took, and all else after the setup: QEMU sends the
// last of it while the guest stands still.
func (m *migration) memoryTime() time.Duration {
	return time.Duration((m.TotalTime - m.SetupTime) * float64(time.Millisecond))
}

// words opens the guest's memory, which is a memfd.
func (q *qemuTraveller) words() (*guestWords, error) {
	return openGuestWords(q.at.cmd.Process.Pid, q.memory)
}

// close ends the guest, if there is one.
func (q *qemuTraveller) close() {
	if q != nil && q.at != nil {
		q.at.close()
		q.at = nil
	}
}
