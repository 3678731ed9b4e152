package vmm

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/godwit-vmm/godwit/guest/micro"
	"github.com/godwit-vmm/godwit/machine"
	"github.com/godwit-vmm/godwit/migrate/live"
)

// turn watches the times in which a guest runs on one side. A lock of a file that both
// sides know goes with it: the kernel says whether two run at once, and gives the lock
// back when a process is killed and all its threads are gone. In its turn a side writes
// epoch and counter to the disk, and neither may go back.
type turn struct {
	side  *faultSide
	vm    *fixture
	epoch uint64

	mu   sync.Mutex
	lock *os.File // while the guest runs
}

const (
	diarySize  = 16
	diaryPause = 2 * time.Millisecond
)

func newTurn(s *faultSide, vm *fixture, epoch uint64) *turn {
	t := &turn{side: s, vm: vm, epoch: epoch}
	go t.keepDiary()
	return t
}

func (t *turn) wrong(format string, args ...any) {
	t.side.tell(word{Kind: "violation", Text: t.side.Side + ": " + fmt.Sprintf(format, args...)})
}

// begin comes before the guest runs.
func (t *turn) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock != nil {
		return
	}
	f, err := os.OpenFile(t.side.Turn, os.O_RDWR, 0)
	if err == nil {
		t.lock = f
		err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart})
	}
	if err != nil {
		t.wrong("the guest runs on two sides: %v", err)
	}
}

// idle is how many percent of its time a guest stands still, all along: it leaves the
// processors of this machine to other cells.
const idle = 90

// throttle slows a guest down, if it is there still.
func (t *turn) throttle(percent int) {
	_ = t.vm.Use(func(m *machine.Machine) error { m.Throttle(percent); return nil })
}

// end comes when the guest stands still.
func (t *turn) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock != nil {
		_ = t.lock.Close()
		t.lock = nil
	}
}

func (t *turn) on() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.lock != nil
}

// keepDiary writes down what the guest has come to.
func (t *turn) keepDiary() {
	for range time.Tick(diaryPause) {
		var count uint64
		if t.vm.Use(func(m *machine.Machine) (err error) {
			count, err = m.Memory().Uint64(micro.ResultStart + micro.ResultCount)
			return err
		}) != nil {
			continue // not built yet, or gone
		}
		if err := t.write(count); err != nil {
			t.wrong("the diary: %v", err)
			return
		}
	}
}

func (t *turn) write(count uint64) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lock == nil {
		return nil
	}
	f, err := os.OpenFile(t.side.Disk, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	var before, now [diarySize]byte
	if _, err := f.ReadAt(before[:], 0); err != nil {
		return err
	}
	epoch, last := binary.LittleEndian.Uint64(before[:]), binary.LittleEndian.Uint64(before[8:])
	if epoch > t.epoch || last > count {
		return fmt.Errorf("in epoch %d the counter is %d after epoch %d, counter %d", t.epoch, count, epoch, last)
	}
	binary.LittleEndian.PutUint64(now[:], t.epoch)
	binary.LittleEndian.PutUint64(now[8:], count)
	if _, err := f.WriteAt(now[:], 0); err != nil && !errors.Is(err, unix.EFBIG) {
		return err
	}
	return nil
}

// watchedGuest is a guest with its turns.
type watchedGuest struct {
	*moving
	turn *turn
}

// Throttle is not for the migration here, see idle.
func (g *watchedGuest) Throttle(int) {}

func (g *watchedGuest) Pause() {
	g.moving.Throttle(0) // who pauses must be the only one
	g.moving.Pause()
	g.turn.end()
}

func (g *watchedGuest) Resume() {
	g.turn.begin()
	g.moving.Resume()
	g.moving.Throttle(idle)
}

// watchedIncoming is a guest that comes, with its turns and the mishaps of the scenario.
type watchedIncoming struct {
	live.Incoming
	side *faultSide
	turn *turn
}

func (i *watchedIncoming) Load(state []byte) error {
	if i.side.mishap("unloadable") {
		return errors.New("the scenario wants it so")
	}
	return i.Incoming.Load(state)
}

func (i *watchedIncoming) TakeLocks() error {
	if i.side.mishap("refused") {
		return errors.New("the scenario wants it so")
	}
	return i.Incoming.TakeLocks()
}

func (i *watchedIncoming) Run() error {
	i.turn.begin()
	err := i.Incoming.Run()
	if err == nil {
		i.turn.throttle(idle)
		i.side.tell(word{Kind: "runs"})
	} else {
		i.turn.end()
	}
	return err
}
