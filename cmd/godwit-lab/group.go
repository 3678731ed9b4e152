package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"syscall"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/godwit-vmm/godwit/internal/flags"
	"github.com/godwit-vmm/godwit/internal/lab"
)

// groupFlags are the flags of up, which it hands to keep.
type groupFlags struct {
	name  string
	hosts int
	disk  flags.Size
	host  hostFlags
}

func (g *groupFlags) add(c *cobra.Command) {
	c.Flags().StringVar(&g.name, "name", lab.DefaultGroup, "name of the lab")
	c.Flags().IntVar(&g.hosts, "hosts", 1, "how many hosts")
	c.Flags().Var(&g.disk, "shared-disk", "give all hosts one disk, /dev/vda, of this size, such as 256M")
	g.host.add(c.Flags())
}

func (g *groupFlags) args() []string {
	return []string{
		"--name", g.name, "--hosts", strconv.Itoa(g.hosts), "--shared-disk", g.disk.String(),
		"--cpus", strconv.Itoa(g.host.cpus), "--memory", g.host.memory.String(),
		"--with-qemu=" + strconv.FormatBool(g.host.qemu),
	}
}

func newUp() *cobra.Command {
	var g groupFlags
	c := &cobra.Command{
		Use:   "up",
		Short: "Start hosts that stay, on one network",
		Long: `Start hosts h1, h2, ... that run until "godwit-lab down". They share a network,
on which hN has the address 10.77.0.N, and know each other by name. A process in
the background holds them; if it dies, they die with it.`,
		Example: `  godwit-lab up --hosts 2
  godwit-lab up --hosts 2 --shared-disk 256M   for a guest that moves with its disk
  godwit-lab up --name big --cpus 4 --memory 8G`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return up(&g) },
	}
	g.add(c)
	return c
}

// readyFD is where keep says "ready" or why it failed.
const readyFD = 3

// up starts the keeper in the background and waits until the hosts are up.
func up(g *groupFlags) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	keeper := exec.Command(self, append([]string{"keep"}, g.args()...)...)
	keeper.ExtraFiles = []*os.File{w}
	// Apart from the terminal and its signals.
	keeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := errors.Join(keeper.Start(), w.Close()); err != nil {
		return fmt.Errorf("start the keeper of the lab: %w", err)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	interrupted := context.AfterFunc(ctx, func() { keeper.Process.Signal(syscall.SIGTERM) })
	answer, err := io.ReadAll(r)
	if !interrupted() {
		return errors.Join(errors.New("interrupted"), keeper.Wait())
	}
	if err == nil && string(answer) != ready {
		err = errors.New(string(answer))
	}
	if err != nil {
		keeper.Wait()
		return err
	}
	return list(g.name, false)
}

// ready is what keep says when the hosts are up.
const ready = "ready"

func newKeep() *cobra.Command {
	var g groupFlags
	c := &cobra.Command{
		Use:    "keep",
		Short:  "Hold the hosts of a lab (what up runs in the background)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			answer := os.NewFile(readyFD, "ready")
			err := keep(&g, answer)
			if err != nil {
				// Fails if up has been told already that it is ready.
				fmt.Fprint(answer, err)
				answer.Close()
				return exitStatus(exitFailed)
			}
			return nil
		},
	}
	g.add(c)
	return c
}

func keep(g *groupFlags, answer *os.File) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	o, err := g.host.options()
	if err != nil {
		return err
	}
	return lab.Keep(ctx, g.name, g.hosts, o, int64(g.disk), func(lab.Group) {
		fmt.Fprint(answer, ready)
		answer.Close()
	})
}

func newDown() *cobra.Command {
	var name string
	var all bool
	c := &cobra.Command{
		Use:     "down",
		Short:   "End the hosts of a lab",
		Example: "  godwit-lab down\n  godwit-lab down --name big\n  godwit-lab down --all",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if !all {
				return lab.Down(name)
			}
			groups, err := lab.Groups()
			errs := []error{err}
			for _, g := range groups {
				errs = append(errs, lab.Down(g.Name))
			}
			return errors.Join(errs...)
		},
	}
	c.Flags().StringVar(&name, "name", lab.DefaultGroup, "name of the lab")
	c.Flags().BoolVar(&all, "all", false, "end all labs of this user")
	return c
}

func newList() *cobra.Command {
	var asJSON bool
	c := &cobra.Command{
		Use:     "list",
		Aliases: []string{"status"},
		Short:   "Show the labs that are up",
		Example: "  godwit-lab list --json",
		Args:    cobra.NoArgs,
		RunE:    func(*cobra.Command, []string) error { return list("", asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "as JSON")
	return c
}

// list shows one lab, or all if name is empty.
func list(name string, asJSON bool) error {
	groups, err := lab.Groups()
	if err != nil {
		return err
	}
	if asJSON {
		e := json.NewEncoder(os.Stdout)
		e.SetIndent("", "  ")
		return e.Encode(groups)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', 0)
	fmt.Fprintln(w, "HOST\tADDRESS\tCPUS\tMEMORY\tCONSOLE LOG")
	for _, g := range groups {
		if name != "" && g.Name != name {
			continue
		}
		prefix := g.Name + "/"
		if g.Name == lab.DefaultGroup {
			prefix = ""
		}
		for _, h := range g.Hosts {
			fmt.Fprintf(w, "%s%s\t%s\t%d\t%d MiB\t%s\n", prefix, h.Name, h.Address, h.CPUs, h.MemoryMiB, h.ConsoleLog())
		}
	}
	return w.Flush()
}
