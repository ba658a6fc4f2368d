package control

import (
	"fmt"
	"strings"
)

// A volume in no group moves in a group of its own, which the manager makes for the move and takes away behind it: without a
// secondary, with its log in memory, and never shown. Its name has a dot, which no name that is given by command has.

// LoneGroup is the name of the group in which the volume NODE/NAME moves; the ids of its moves begin with it. A name without a
// slash stays as it is.
func LoneGroup(name string) string { return strings.ReplaceAll(name, "/", ".") }

// ForMove says of a group's name that it was made for the move of a volume in no group.
func ForMove(group string) bool { return strings.Contains(group, ".") }

// What names the group for people: or the volume for whose move it was made.
func (g *Group) What() string { return what(g.Name, g.Lone) }

// Object is what events of the group are told of: it, or the volume.
func (g *Group) Object() string {
	if g.Lone != "" {
		return "volume/" + g.Lone
	}
	return "group/" + g.Name
}

// What names what is moved.
func (m *Migration) What() string { return what(m.Group, m.Lone) }

// Object is what is moved as `migrate start` takes it: a group, or a volume in none.
func (m *Migration) Object() string {
	if m.Lone != "" {
		return m.Lone
	}
	return m.Group
}

// Arrived is what has been moved, as `migrate start` takes it behind the commit.
func (m *Migration) Arrived() string {
	if m.Lone != "" && len(m.Volumes) > 0 {
		return m.Volumes[0].Target
	}
	return m.Group
}

func what(group, lone string) string {
	if lone != "" {
		return "volume " + lone
	}
	return "group " + group
}

// MoveID is the id of the group's latest move.
func (g *Group) MoveID() string { return fmt.Sprintf("%s-%d", g.Name, g.Migrations) }
