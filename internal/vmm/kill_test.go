package vmm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godwit-vmm/godwit/internal/testenv"
	"github.com/godwit-vmm/godwit/kvm"
	"github.com/godwit-vmm/godwit/migrate/snapshot"
)

// childVariable makes this test's process a VMM that is to be killed: it restores
// the snapshot in the folder that the variable names, and takes others beside it.
const childVariable = "GODWIT_TEST_VMM"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childVariable); dir != "" {
		if err := restoreAndSave(dir); err != nil {
			fmt.Println("error", err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// restoreAndSave goes on until it is killed.
func restoreAndSave(dir string) error {
	sys, err := kvm.Open("")
	if err != nil {
		return err
	}
	v := New(context.Background(), Options{System: sys, Name: "killed"}, Config{})
	fmt.Println("restoring")
	if err := v.Load(context.Background(), LoadRequest{Path: filepath.Join(dir, "base"), Resume: true, TrackDirty: true}); err != nil {
		return err
	}
	fmt.Println("restored")
	for n := 0; ; n++ {
		r := SnapshotRequest{Path: filepath.Join(dir, strconv.Itoa(n)), Live: true, Track: true, Diff: n%4 != 0}
		if _, err := v.Snapshot(context.Background(), r); err != nil {
			return err
		}
		fmt.Println("saved")
	}
}

// TestKilledAnywhere kills a VMM at random moments of a restore and of snapshots: the
// snapshot that it came from stays as it was, and what it has made is whole, or is not
// there.
func TestKilledAnywhere(t *testing.T) {
	points := 40
	if text := os.Getenv("GODWIT_TEST_KILLS"); text != "" {
		var err error
		if points, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	f := newVM(t, checker(t), nil)
	f.must(f.Start())
	f.runs()
	f.snapshot(SnapshotRequest{Path: filepath.Join(dir, "base"), Live: true, Stop: true})
	<-f.Done()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	whole := 0
	for point := range points {
		if err := killedRun(t, dir, point%2 == 0, rnd); err != nil {
			t.Fatalf("point %d: %v", point, err)
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), ".") {
				continue // of a writer that was killed
			}
			if err := snapshot.Verify(t.Context(), filepath.Join(dir, e.Name()), nil); err != nil {
				t.Fatalf("point %d: %v", point, err)
			}
			whole++
		}
		for _, e := range entries {
			if e.Name() != "base" && !strings.HasPrefix(e.Name(), ".") {
				if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if whole == points {
		t.Error("no snapshot was ever finished: the kills come too early to say anything")
	}
	if err := snapshot.CleanStale(dir); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("left behind: %v, %v", left, err)
	}
	restored(t, LoadRequest{Path: filepath.Join(dir, "base"), Resume: true}).sound()
}

// killedRun starts a VMM and kills it some time after it has begun to restore, or has
// restored.
func killedRun(t *testing.T, dir string, restoring bool, rnd *rand.Rand) error {
	c := exec.Command(os.Args[0])
	c.Env = append(os.Environ(), childVariable+"="+dir)
	out, err := c.StdoutPipe()
	if err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	defer func() { _ = c.Wait() }() // it is killed
	await, within := "restored", 500*time.Millisecond
	if restoring {
		await, within = "restoring", 10*time.Millisecond
	}
	for said := bufio.NewScanner(out); said.Scan(); {
		if text, ok := strings.CutPrefix(said.Text(), "error "); ok {
			_ = c.Process.Kill()
			if strings.Contains(text, "/dev/kvm") {
				testenv.Lacks(t, "%s", text)
			}
			return errors.New(text)
		}
		if said.Text() == await {
			time.Sleep(time.Duration(rnd.Int64N(int64(within)))) // the moment is what is tested
			return c.Process.Kill()
		}
	}
	_ = c.Process.Kill()
	return errors.New("the VMM ended by itself")
}
